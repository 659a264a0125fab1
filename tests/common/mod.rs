//! What tests on real devices share: hosts in namespaces and guests, wires between them, and the implementations that run there.

#![allow(dead_code)] // each test program uses its own part

pub(crate) mod guest;
pub(crate) mod implementation;
pub(crate) mod lab;
