//! Thin safe wrappers of the kernel, with one system interface in each file and without policy. What a call needs to be sound
//! stands in its file. What it is for is the caller's to decide.

#![allow(unsafe_code)] // the floor that speaks to the kernel: each block carries its SAFETY line

pub(crate) mod bpf;
pub(crate) mod calls;
#[cfg(feature = "cli")]
pub(crate) mod child;
pub mod clock;
pub mod cmsg;
pub mod error;
pub mod group;
pub mod gso;
pub mod icmp;
#[cfg(feature = "cli")]
pub mod inherit;
pub(crate) mod ioctl;
pub mod link;
pub mod memory;
#[cfg(feature = "cli")]
pub mod namespace;
#[cfg(test)]
pub(crate) mod netns;
#[cfg(feature = "cli")]
pub(crate) mod packets;
pub(crate) mod passing;
#[cfg(feature = "cli")]
pub(crate) mod process;
pub mod refusals;
pub(crate) mod rtnl;
pub(crate) mod sealed;
pub(crate) mod sockopt;
pub mod source;
pub mod trace;
pub mod tun_namespace;
pub mod waker;
