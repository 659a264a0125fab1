//! The listener of `--http`: metrics, state and a page for people. It is read-only, and tells no secret.
//!
//! One thread serves it, beside the data path: it asks its own process through the control socket, as anybody would
//! ([`report`]). Connections are few and bounded in number, in size of a request and in time.

mod answers;
mod history;
mod report;

use crate::crypto::stack;
use answers::{HttpAnswer, HttpRequest};
use history::ByteHistory;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use report::TunnelReports;
use socket2::SockRef;
use std::convert::Infallible;
use std::fmt::{self, Display, Formatter};
use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

/// Most connections at a time. Others wait to be accepted.
const MAX_CONNECTIONS: usize = 32;
/// Most bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// How long a request's head may take, and how long a connection may lie idle.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long a connection may last. Whoever reads slowly, or not at all, must not keep others out.
const CONNECTION_TIME: Duration = Duration::from_secs(120);
/// Pause after a connection could not be accepted, as there is no file left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Where to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HttpAddress {
    /// A TCP port at an address of the host.
    Tcp(SocketAddr),
    /// The path of a UNIX socket.
    Unix(PathBuf),
}

/// What is no place to listen at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HttpAddressError {
    /// The path of a UNIX socket is not absolute.
    Relative,
    /// It has none of the forms.
    Form,
}

impl Display for HttpAddressError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HttpAddressError::Relative => "unix: wants an absolute path, as in unix:/run/ringtun-wg0.http",
            HttpAddressError::Form => "expected PORT (of 127.0.0.1), ADDRESS:PORT, [IPV6]:PORT or unix:PATH",
        })
    }
}

impl std::error::Error for HttpAddressError {}

impl FromStr for HttpAddress {
    type Err = HttpAddressError;

    fn from_str(text: &str) -> std::result::Result<HttpAddress, HttpAddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.starts_with('/') {
                true => Ok(HttpAddress::Unix(path.into())),
                false => Err(HttpAddressError::Relative),
            };
        }
        let port = text.parse().map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        port.or_else(|_| text.parse()).map(HttpAddress::Tcp).map_err(|_| HttpAddressError::Form)
    }
}

impl HttpAddress {
    /// The address of which this is what [`Display`] makes.
    pub fn displayed(text: &str) -> Option<HttpAddress> {
        let bare = text.strip_prefix("http://").and_then(|text| text.strip_suffix('/'));
        bare.unwrap_or(text).parse().ok()
    }
}

impl Display for HttpAddress {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            HttpAddress::Tcp(address) => write!(f, "http://{address}/"),
            HttpAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket that listens, and is not served yet.
#[derive(Debug)]
pub struct Listener {
    socket: HttpSocket,
    address: HttpAddress,
}

#[derive(Debug)]
enum HttpSocket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Listener {
    /// Listens. A file of a socket on which nobody listens any more is replaced; a new one may be used by its owner and group.
    ///
    /// # Errors
    ///
    /// What the kernel says, with the address.
    pub fn bind(address: &HttpAddress) -> Result<Listener> {
        let socket = match address {
            HttpAddress::Tcp(at) => std::net::TcpListener::bind(at).map(HttpSocket::Tcp),
            HttpAddress::Unix(path) => bind_unix(path).map(HttpSocket::Unix),
        };
        let socket = socket.map_err(|error| crate::sys::error::explain(error, address))?;
        let address = match &socket {
            HttpSocket::Tcp(listener) => HttpAddress::Tcp(listener.local_addr()?),
            HttpSocket::Unix(_) => address.clone(),
        };
        Ok(Listener { socket, address })
    }

    /// Takes over a socket that listens at `address`.
    ///
    /// # Errors
    ///
    /// Where the file is no socket that listens.
    pub fn inherit(file: OwnedFd, address: HttpAddress) -> Result<Listener> {
        if !SockRef::from(&file).is_listener()? {
            return Err(Error::new(ErrorKind::InvalidInput, "what was handed over does not listen"));
        }
        let socket = match &address {
            HttpAddress::Tcp(_) => HttpSocket::Tcp(file.into()),
            HttpAddress::Unix(_) => HttpSocket::Unix(file.into()),
        };
        Ok(Listener { socket, address })
    }

    /// Where it listens.
    pub fn address(&self) -> &HttpAddress {
        &self.address
    }

    /// Another handle on the socket, for a process that goes on with it.
    ///
    /// # Errors
    ///
    /// Where the process may have no more files.
    pub fn share(&self) -> Result<OwnedFd> {
        Ok(match &self.socket {
            HttpSocket::Tcp(listener) => listener.try_clone()?.into(),
            HttpSocket::Unix(listener) => listener.try_clone()?.into(),
        })
    }

    /// Serves the tunnel called `interface`, on a thread that ends with the process.
    ///
    /// # Errors
    ///
    /// Where the thread or its runtime cannot be started.
    pub fn serve(self, interface: String) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Questions to the control socket block, and are asked one at a time.
            .max_blocking_threads(1)
            .thread_name("ringtun-ask")
            .build()?;
        log::info!("{interface}: metrics, status and a page at {}", self.address);
        if let HttpAddress::Tcp(at) = &self.address
            && !at.ip().is_loopback()
        {
            log::warn!("{interface}: whoever reaches {at} can read who its peers are and where");
        }
        let run = move || {
            let served = runtime.block_on(self.accept(interface));
            if let Err(error) = served {
                log::error!("--http ended: {error}");
            }
        };
        std::thread::Builder::new().name("ringtun-http".into()).spawn(run).map(drop)
    }

    async fn accept(self, interface: String) -> Result<()> {
        let shared = Arc::new(Shared {
            reports: TunnelReports::new(interface.clone()),
            history: ByteHistory::default(),
            is_tcp: matches!(self.address, HttpAddress::Tcp(_)),
        });
        tokio::spawn(history::follow(interface, Arc::clone(&shared)));
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let accepting = match self.socket {
            HttpSocket::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Accepting::Tcp(tokio::net::TcpListener::from_std(listener)?)
            }
            HttpSocket::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Accepting::Unix(tokio::net::UnixListener::from_std(listener)?)
            }
        };
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return Ok(()) };
            let stream: Box<dyn ClientStream> = match accepting.next().await {
                Ok(stream) => stream,
                Err(error) => {
                    log::debug!("--http: cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                // Whatever ends a connection is its client's affair.
                let _ = tokio::time::timeout(CONNECTION_TIME, converse(stream, shared)).await;
                drop(permit);
            });
        }
    }
}

/// What all connections use.
struct Shared {
    reports: TunnelReports,
    history: ByteHistory,
    is_tcp: bool,
}

trait ClientStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> ClientStream for T {}

enum Accepting {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

impl Accepting {
    async fn next(&self) -> Result<Box<dyn ClientStream>> {
        Ok(match self {
            Accepting::Tcp(listener) => Box::new(listener.accept().await?.0),
            Accepting::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

fn bind_unix(path: &Path) -> Result<std::os::unix::net::UnixListener> {
    if UnixStream::connect(path).is_ok() {
        return Err(Error::new(ErrorKind::AddrInUse, "another process listens there"));
    }
    if std::fs::symlink_metadata(path)
        .is_ok_and(|metadata| std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()))
    {
        std::fs::remove_file(path)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

async fn converse(stream: Box<dyn ClientStream>, shared: Arc<Shared>) -> hyper::Result<()> {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(respond(&request, &shared).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn respond(request: &hyper::Request<Incoming>, shared: &Arc<Shared>) -> hyper::Response<Full<Bytes>> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let request = HttpRequest {
        is_read: matches!(*request.method(), hyper::Method::GET | hyper::Method::HEAD),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        host: header(hyper::header::HOST).filter(|_| shared.is_tcp).map(str::to_owned),
        accept: header(hyper::header::ACCEPT).unwrap_or_default().to_owned(),
    };
    let shared = Arc::clone(shared);
    let answer = tokio::task::spawn_blocking(move || {
        // What the device answers has keys in it.
        stack::leaving_nothing(|| answers::answer(&request, &shared.reports, &shared.history))
    });
    let HttpAnswer { status, kind, body } = answer.await.unwrap_or_else(|_| HttpAnswer::broken());
    let mut response = hyper::Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
    ] {
        headers.insert(name, hyper::header::HeaderValue::from_static(value));
    }
    if status == 405 {
        headers.insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// Whether a request that names this host was meant for us. A page of a stranger's may lead its own name to our address (DNS
/// rebinding), so that a browser behind our firewall reads this for it. Addresses cannot be led astray.
fn is_own_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_port_is_the_loopbacks() {
        let at = |text: &str| text.parse::<HttpAddress>();
        assert_eq!(at("9586"), Ok(HttpAddress::Tcp("127.0.0.1:9586".parse().unwrap())));
        assert_eq!(at("[::1]:80"), Ok(HttpAddress::Tcp("[::1]:80".parse().unwrap())));
        assert_eq!(at("unix:/run/x"), Ok(HttpAddress::Unix("/run/x".into())));
        for text in ["9586", "[::1]:80", "unix:/run/x"] {
            assert_eq!(HttpAddress::displayed(&at(text).unwrap().to_string()), at(text).ok());
        }
        for wrong in ["", "unix:x", "localhost:80", "70000", "127.0.0.1"] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_addresses_and_localhost_are_ours() {
        for own in
            ["localhost", "localhost:9586", "127.0.0.1", "127.0.0.1:9586", "[::1]:80", "192.168.1.1:80"]
        {
            assert!(is_own_host(own), "{own}");
        }
        for strange in
            ["example.org", "example.org:9586", "127.0.0.1.example.org", "localhost.example.org:80", ""]
        {
            assert!(!is_own_host(strange), "{strange}");
        }
    }

    #[test]
    fn a_socket_that_nobody_serves_is_replaced_and_no_other_file() {
        let path = std::env::temp_dir().join(format!("rt-http-{}", std::process::id()));
        let address = HttpAddress::Unix(path.clone());
        let first = Listener::bind(&address).unwrap();
        assert!(Listener::bind(&address).unwrap_err().to_string().contains("another process"));
        drop(first);
        drop(Listener::bind(&address).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        assert!(Listener::bind(&address).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        std::fs::remove_file(&path).unwrap();
    }
}
