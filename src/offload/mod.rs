//! Between packets and super-packets: pure functions over buffers.

pub mod coalesce;
pub mod split;
pub mod train;

#[cfg(test)]
pub(crate) mod testing;
