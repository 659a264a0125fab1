//! The `ringtun` binary.

fn main() -> std::process::ExitCode {
    ringtun::cli::main()
}
