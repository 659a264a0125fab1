//! A tunnel's whole life: from creation to removal.

pub mod socket;
pub mod tunnel;
