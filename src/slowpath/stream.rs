//! A control connection, on either runtime.

use std::io::{Error, ErrorKind, Result};
use zeroize::Zeroizing;

/// Most bytes that are read at once.
pub(super) const READ_SIZE: usize = 64 * 1024;

/// A control connection. It may be read and written at a time.
pub(super) enum Stream {
    Uring(tokio_uring::net::UnixStream),
    Tokio(tokio::net::UnixStream),
}

impl Stream {
    /// Wraps a connection just accepted. `uring` says that the runtime is tokio-uring's.
    pub(super) fn new(stream: tokio::net::UnixStream, uring: bool) -> Result<Stream> {
        if !uring {
            return Ok(Stream::Tokio(stream));
        }
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?; // the ring waits, where a non-blocking socket would answer EAGAIN
        Ok(Stream::Uring(tokio_uring::net::UnixStream::from_std(stream)))
    }

    /// Reads into `buffer` and returns it with the number of bytes, which is 0 at the end.
    pub(super) async fn read(&self, mut buffer: Vec<u8>) -> (Result<usize>, Vec<u8>) {
        match self {
            Stream::Uring(stream) => stream.read(buffer).await,
            Stream::Tokio(stream) => {
                buffer.resize(READ_SIZE, 0);
                let read = loop {
                    match stream.try_read(&mut buffer) {
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        read => break read,
                    }
                    if let Err(error) = stream.readable().await {
                        break Err(error);
                    }
                };
                (read, buffer)
            }
        }
    }

    /// Writes all of `bytes`, and wipes them.
    pub(super) async fn write_all(&self, bytes: Vec<u8>) -> Result<()> {
        match self {
            Stream::Uring(stream) => {
                let (done, bytes) = stream.write_all(bytes).await;
                drop(Zeroizing::new(bytes));
                done
            }
            Stream::Tokio(stream) => {
                let bytes = Zeroizing::new(bytes);
                let mut left = &bytes[..];
                while !left.is_empty() {
                    match stream.try_write(left) {
                        Ok(0) => return Err(Error::from(ErrorKind::WriteZero)),
                        Ok(written) => left = left.get(written..).unwrap_or_default(),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => stream.writable().await?,
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
        }
    }
}
