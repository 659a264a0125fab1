//! The declaration of a set of counters.

/// Declares a struct of counters once: its fields, their names in `snapshot`, and their doc comments in `describe`. The
/// type of a field stands after `of`, and `read` turns a reference to a field into a `u64`.
macro_rules! counters {
    (
        $(#[$outer:meta])* $stats:ident of $kind:ty, read $read:expr;
        $($(#[doc = $doc:literal])* $name:ident,)*
    ) => {
        $(#[$outer])*
        #[derive(Default, Debug)]
        pub struct $stats {
            $($(#[doc = $doc])* pub $name: $kind,)*
        }

        impl $stats {
            /// All counters by name, for `metrics` and tests.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                let read: fn(&$kind) -> u64 = $read;
                vec![$((stringify!($name), read(&self.$name)),)*]
            }

            /// What a counter counts, in a sentence. `None` where there is none of this name.
            #[cfg(feature = "cli")]
            pub fn describe(name: &str) -> Option<&'static str> {
                match name {
                    $(stringify!($name) => Some(concat!($($doc),*)),)*
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use counters;
