//! Messages to a service manager by sd_notify(3): a datagram of lines to the socket that NOTIFY_SOCKET names.

use crate::device::status::Summary;
use crate::sys::clock;
use crate::tunnel::plural::counted;
use std::ffi::OsStr;
use std::io::{Error, ErrorKind, Result};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The time between two reports.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// The socket of the service manager. What cannot be delivered is lost: a service must not fail because nobody listens.
#[derive(Debug)]
pub struct Notify {
    socket: UnixDatagram,
}

impl Notify {
    /// The manager that started this process. `None` where no manager did, or its socket is not there.
    pub fn from_env() -> Option<Notify> {
        let address = std::env::var_os("NOTIFY_SOCKET")?;
        Notify::at(&address)
            .inspect_err(|error| {
                log::warn!("cannot reach the service manager at NOTIFY_SOCKET={}: {error}", address.display())
            })
            .ok()
    }

    /// The manager at `address`, which is a path, or `@` and an abstract name.
    ///
    /// # Errors
    ///
    /// Where `address` is neither, or nobody listens there.
    pub fn at(address: &OsStr) -> Result<Notify> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(address)?,
            _ => return Err(Error::new(ErrorKind::Unsupported, "neither a path nor an abstract name")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A manager that does not read must not hold up this process.
        socket.set_nonblocking(true)?;
        Ok(Notify { socket })
    }

    /// Reports that the tunnel is up. The message names this process as the main one, since it may have been started by
    /// another that is about to end.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nMAINPID={}\nSTATUS={}", std::process::id(), one_line(status)));
    }

    /// Reports that the configuration is being read again. [`Self::ready`] reports the end of that.
    pub fn reloading(&self) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", clock::monotonic_micros()));
    }

    /// Names another process as the main one, which goes on with the tunnel.
    pub fn succeeded_by(&self, process: u32) {
        self.send(&format!("MAINPID={process}\nSTATUS=Process {process} goes on with the tunnel"));
    }

    /// Reports that the tunnel is about to end.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=Removing the interface");
    }

    /// Sets the line that `systemctl status` shows.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", one_line(text)));
    }

    fn send(&self, message: &str) {
        if let Err(error) = self.socket.send(message.as_bytes()) {
            log::debug!("cannot notify the service manager: {error}");
        }
    }
}

/// A line with the number of peers and the rate since the last report, which was [`REPORT_INTERVAL`] ago.
pub fn describe(last: Option<Summary>, now: Summary) -> String {
    let seconds = REPORT_INTERVAL.as_secs().max(1);
    // There are fewer bytes than before where a peer was removed, and its bytes with it.
    let rate = |now: u64, last: u64| bits(now.saturating_sub(last) * 8 / seconds);
    let last = last.unwrap_or(now);
    format!(
        "{}, {} with a session; receiving {}, sending {}",
        counted(now.peers, "peer"),
        now.alive,
        rate(now.rx_bytes, last.rx_bytes),
        rate(now.tx_bytes, last.tx_bytes)
    )
}

/// A rate in bits per second as text, with one decimal from kbit/s on.
fn bits(rate: u64) -> String {
    let unit = [(1_000_000_000, "Gbit/s"), (1_000_000, "Mbit/s"), (1_000, "kbit/s")];
    match unit.into_iter().find(|(size, _)| rate >= *size) {
        Some((size, name)) => format!("{}.{} {name}", rate / size, rate % size * 10 / size),
        None => format!("{rate} bit/s"),
    }
}

/// The text without line feeds: a status is one line, and the next would be another assignment.
fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_at_a_path_is_told_of_every_state() {
        let path = std::env::temp_dir().join(format!("rt-notify-{}.sock", std::process::id()));
        let manager = UnixDatagram::bind(&path).unwrap();
        let notify = Notify::at(path.as_os_str()).unwrap();
        notify.ready("up\nREADY=0");
        let pid = std::process::id();
        assert_eq!(received(&manager), format!("READY=1\nMAINPID={pid}\nSTATUS=up READY=0"));
        notify.reloading();
        let reloading = received(&manager);
        let usec: u64 = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!(usec > 0);
        notify.succeeded_by(4711);
        assert!(received(&manager).starts_with("MAINPID=4711\nSTATUS="));
        notify.stopping();
        assert!(received(&manager).starts_with("STOPPING=1\n"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_manager_at_an_abstract_name_is_found() {
        let name = format!("rt-notify-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notify::at(OsStr::new(&format!("@{name}"))).unwrap().status("well");
        assert_eq!(received(&manager), "STATUS=well");
    }

    #[test]
    fn what_is_no_address_is_refused_and_a_manager_that_does_not_read_holds_up_nothing() {
        assert!(Notify::at(OsStr::new("vsock:2:1")).is_err());
        assert!(Notify::at(OsStr::new("/nonexistent/notify")).is_err());
        let name = format!("rt-notify-full-{}", std::process::id());
        let _manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let notify = Notify::at(OsStr::new(&format!("@{name}"))).unwrap();
        (0..10_000).for_each(|_| notify.status("well"));
    }

    #[test]
    fn a_report_tells_the_rate_since_the_last() {
        let before = Summary { peers: 2, alive: 1, rx_bytes: 1000, tx_bytes: 9000 };
        let now = Summary { rx_bytes: 1000 + 5 * 1_250_000, tx_bytes: 10, ..before };
        assert_eq!(
            describe(Some(before), now),
            "2 peers, 1 with a session; receiving 10.0 Mbit/s, sending 0 bit/s"
        );
        assert_eq!(describe(None, now), "2 peers, 1 with a session; receiving 0 bit/s, sending 0 bit/s");
        assert_eq!([bits(999), bits(1500), bits(2_340_000_000)], ["999 bit/s", "1.5 kbit/s", "2.3 Gbit/s"]);
    }
}
