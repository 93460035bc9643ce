//! The other end of the admin socket: one request, one answer.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::types::Problem;

/// How long a request may take beyond what it asks to wait itself.
const REQUEST_WAIT: Duration = Duration::from_secs(15);
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Why there is no answer, or not the one that was wanted.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no gateway answers on {}: {source}; start one with `shadowvm run -c FILE`, or name its \
         socket with --socket",
        socket.display()
    )]
    NoDaemon {
        /// Where.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket is another user's.
    #[error(
        "not permitted to use {}; run this as root or as the user that the gateway runs as",
        .0.display()
    )]
    Permission(PathBuf),
    /// The daemon refused.
    #[error("{}", .0.detail)]
    Refused(Problem),
    /// The daemon is there but the conversation failed.
    #[error("the gateway did not answer properly: {0}; see its log")]
    Broken(String),
}

/// Asks `GET path`.
pub fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, ClientError> {
    let answer = exchange(socket, Method::GET, path, Vec::new(), Duration::ZERO)?;
    serde_json::from_slice(&answer).map_err(|error| ClientError::Broken(error.to_string()))
}

/// Asks `POST path` with `body`; the daemon may take `wait` longer than usual.
pub fn post<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
    wait: Duration,
) -> Result<T, ClientError> {
    let body = serde_json::to_vec(body).map_err(|error| ClientError::Broken(error.to_string()))?;
    let answer = exchange(socket, Method::POST, path, body, wait)?;
    serde_json::from_slice(&answer).map_err(|error| ClientError::Broken(error.to_string()))
}

fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Vec<u8>,
    wait: Duration,
) -> Result<Bytes, ClientError> {
    let broken = |error: &dyn std::fmt::Display| ClientError::Broken(error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| broken(&error))?;
    let talk = async {
        let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
            ErrorKind::PermissionDenied => ClientError::Permission(socket.to_owned()),
            _ => ClientError::NoDaemon { socket: socket.to_owned(), source },
        })?;
        let io = TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(|error| broken(&error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "shadowvm")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| broken(&error))?;
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let body = body.collect().await.map_err(|error| broken(&error))?.to_bytes();
        if status == StatusCode::OK {
            return Ok(body);
        }
        match serde_json::from_slice(&body) {
            Ok(problem) => Err(ClientError::Refused(problem)),
            Err(_) => Err(ClientError::Broken(format!("status {status}"))),
        }
    };
    let talk = async { tokio::time::timeout(REQUEST_WAIT + wait, talk).await };
    runtime.block_on(talk).map_err(|_| ClientError::Broken("no answer in time".into()))?
}
