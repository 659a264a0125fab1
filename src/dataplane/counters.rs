//! The declaration of a set of counters.

/// Declares a struct of counters once: its fields, and their names in `snapshot`. The type of a field stands after
/// `of`, and `read` turns a reference to a field into a `u64`.
macro_rules! counters {
    (
        $(#[$outer:meta])* $stats:ident of $kind:ty, read $read:expr;
        $($(#[$doc:meta])* $name:ident,)*
    ) => {
        $(#[$outer])*
        #[derive(Default, Debug)]
        pub struct $stats {
            $($(#[$doc])* pub $name: $kind,)*
        }

        impl $stats {
            /// All counters by name, for `metrics` and tests.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                let read: fn(&$kind) -> u64 = $read;
                vec![$((stringify!($name), read(&self.$name)),)*]
            }
        }
    };
}
pub(crate) use counters;
