//! Secrets in a file that exists in memory alone (memfd_create(2)), for another process to read. It cannot grow or shrink, so that
//! whoever reads it meets no surprise.

use crate::sys::error::invalid;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Result, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use zeroize::Zeroizing;

/// What is forbidden about the file from the beginning. Writing is not, since it is to be wiped.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);
/// The ways in which it is asked for: of a kernel that wants to be told that the file is no program (Linux 6.3), and of an older one.
pub(crate) const FLAGS: [MemfdFlags; 2] = [
    MemfdFlags::CLOEXEC.union(MemfdFlags::ALLOW_SEALING).union(MemfdFlags::NOEXEC_SEAL),
    MemfdFlags::CLOEXEC.union(MemfdFlags::ALLOW_SEALING),
];

/// A file in memory with secrets. It is filled with zeros when this is dropped.
#[derive(Debug)]
pub(crate) struct SealedFile {
    file: File,
    len: u64,
}

impl SealedFile {
    /// A file with these bytes.
    ///
    /// # Errors
    ///
    /// Where there is no memory for it, or a filter of system calls refuses it.
    pub(crate) fn new(bytes: &[u8]) -> Result<SealedFile> {
        let create = |flags| memfd_create("ringtun-state", flags);
        let file = match create(FLAGS[0]) {
            Err(Errno::INVAL) => create(FLAGS[1])?,
            file => file?,
        };
        let mut sealed = SealedFile { file: file.into(), len: bytes.len() as u64 };
        sealed.file.write_all(bytes)?;
        fcntl_add_seals(&sealed.file, SEALS)?;
        Ok(sealed)
    }

    /// Takes a file over that another process made.
    ///
    /// # Errors
    ///
    /// Where it is no such file, or has more than `most` bytes.
    pub(crate) fn received(file: OwnedFd, most: usize) -> Result<SealedFile> {
        let is_sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SEALS));
        let file = File::from(file);
        let len = file.metadata()?.len();
        if !is_sealed || len > most as u64 {
            return Err(invalid("what was handed over is no sealed file, or too long"));
        }
        Ok(SealedFile { file, len })
    }

    /// What is in the file.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(crate) fn read(&self) -> Result<Zeroizing<Vec<u8>>> {
        let mut bytes = Zeroizing::new(vec![0; self.len as usize]);
        // The position is the same for both processes, so it is left alone.
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn wipe(&mut self) -> Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        self.file.rewind()?;
        let mut left = self.len;
        while left > 0 {
            let some = left.min(ZEROS.len() as u64);
            self.file.write_all(&ZEROS[..some as usize])?;
            left -= some;
        }
        Ok(())
    }
}

impl AsFd for SealedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SealedFile {
    fn drop(&mut self) {
        if let Err(error) = self.wipe() {
            log::error!("secrets in a file in memory could not be wiped: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_read_whole_and_wiped_at_the_end() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| n as u8 | 1).collect();
        let sealed = SealedFile::new(&bytes).unwrap();
        let (again, looked_at) = (sealed.file.try_clone().unwrap(), sealed.file.try_clone().unwrap());
        let received = SealedFile::received(again.into(), bytes.len()).unwrap();
        assert!(*received.read().unwrap() == bytes);
        assert!(looked_at.set_len(1).is_err() && looked_at.set_len(1 << 20).is_err());
        assert!(looked_at.write_all_at(b"more", bytes.len() as u64).is_err());
        drop(received);
        assert!(sealed.read().unwrap().iter().all(|&byte| byte == 0), "the reader wipes it");
        drop(SealedFile::new(b"").unwrap());
    }

    #[test]
    fn a_file_that_may_change_its_length_is_refused_and_so_is_a_long_one() {
        let open = rustix::fs::memfd_create("rt-open", FLAGS[1]).unwrap();
        assert!(SealedFile::received(open, 100).is_err());
        assert!(SealedFile::received(File::open("/dev/null").unwrap().into(), 100).is_err());
        let sealed = SealedFile::new(&[1; 101]).unwrap();
        assert!(SealedFile::received(sealed.file.try_clone().unwrap().into(), 100).is_err());
    }
}
