//! How the controller is reached: TLS with the mesh's root, and a bearer token that is read again for every call.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri};

/// Address and credentials of a controller.
#[derive(Clone, Debug)]
pub struct Controller {
    /// `https://<host or IP>:<port>`.
    pub uri: String,
    /// PEM file with the roots that the controller's certificate leads to; read again at every connect.
    pub roots: PathBuf,
    /// File with the bearer token; read again at every call, because Kubernetes replaces it.
    pub token: PathBuf,
    /// The name that the controller's certificate must have, when it is not the host of [`Controller::uri`].
    pub server_name: Option<String>,
    /// The cluster that the token belongs to (`clusterid` metadata).
    pub cluster_id: String,
    /// A controller that does not accept TCP and TLS within this time counts as unreachable.
    pub connect_timeout: Duration,
    /// A PING is sent this often, also on an idle connection. Istio's control plane ends a connection on which three come within
    /// less than 15 s of the one before.
    pub keepalive_interval: Duration,
    /// A controller that does not answer a PING within this time counts as gone.
    pub keepalive_timeout: Duration,
}

/// Why the controller cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is no URI.
    #[error("{uri:?} is not the address of a controller; use https://<host>:<port>")]
    Uri {
        /// The address given.
        uri: String,
    },
    /// The roots cannot be read.
    #[error("cannot read the controller's root certificates from {}", path.display())]
    RootsFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The roots cannot be used.
    #[error("{} cannot be used as the controller's root certificates", path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: tls::RootsError,
    },
    /// The token cannot be read.
    #[error("cannot read the token for the controller from {}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The token cannot be sent.
    #[error("{} holds no token: one line of visible ASCII characters is expected", path.display())]
    Token {
        /// The file.
        path: PathBuf,
    },
    /// TCP, TLS or HTTP/2 failed.
    #[error("cannot connect to the controller at {uri}")]
    Unreachable {
        /// Its address.
        uri: String,
        /// What failed.
        #[source]
        source: tonic::transport::Error,
    },
}

impl Controller {
    /// With default times and the cluster id `Kubernetes`.
    #[must_use]
    pub fn new(
        uri: impl Into<String>,
        roots: impl Into<PathBuf>,
        token: impl Into<PathBuf>,
    ) -> Self {
        Self {
            uri: uri.into(),
            roots: roots.into(),
            token: token.into(),
            server_name: None,
            cluster_id: "Kubernetes".to_owned(),
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: KEEPALIVE_INTERVAL,
            keepalive_timeout: Duration::from_secs(10),
        }
    }

    /// A connection that is up.
    ///
    /// # Errors
    /// What is wrong with the configuration, or with the way to the controller.
    pub async fn connect(&self) -> Result<Channel, ConnectError> {
        let endpoint = self.endpoint()?;
        endpoint
            .connect()
            .await
            .map_err(|source| self.unreachable(source))
    }

    /// `message` with token and cluster id.
    ///
    /// # Errors
    /// The token cannot be read.
    pub fn authorize<T>(&self, message: T) -> Result<tonic::Request<T>, ConnectError> {
        let mut request = tonic::Request::new(message);
        request
            .metadata_mut()
            .insert("authorization", self.bearer()?);
        if let Ok(cluster) = self.cluster_id.parse() {
            request.metadata_mut().insert("clusterid", cluster);
        }
        Ok(request)
    }

    fn endpoint(&self) -> Result<Endpoint, ConnectError> {
        let uri: Uri = self.uri.parse().map_err(|_not_a_uri| self.bad_uri())?;
        if uri.scheme_str() != Some("https") || uri.host().is_none() {
            return Err(self.bad_uri());
        }
        let path = &self.roots;
        let roots = fs::read_to_string(path).map_err(|source| ConnectError::RootsFile {
            path: path.clone(),
            source,
        })?;
        tls::Roots::from_pem(&roots).map_err(|source| ConnectError::Roots {
            path: path.clone(),
            source,
        })?;
        let mut config = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(roots))
            .timeout(self.connect_timeout);
        if let Some(name) = &self.server_name {
            config = config.domain_name(name);
        }
        Endpoint::from(uri)
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .tls_config(config)
            .map_err(|source| self.unreachable(source))
    }

    fn bearer(&self) -> Result<MetadataValue<Ascii>, ConnectError> {
        let path = &self.token;
        let token = fs::read_to_string(path).map_err(|source| ConnectError::TokenFile {
            path: path.clone(),
            source,
        })?;
        let token = token.trim();
        let bearer = format!("Bearer {token}").parse::<MetadataValue<Ascii>>();
        match bearer {
            Ok(mut bearer) if !token.is_empty() => {
                bearer.set_sensitive(true);
                Ok(bearer)
            }
            _ => Err(ConnectError::Token { path: path.clone() }),
        }
    }

    fn bad_uri(&self) -> ConnectError {
        ConnectError::Uri {
            uri: self.uri.clone(),
        }
    }

    fn unreachable(&self, source: tonic::transport::Error) -> ConnectError {
        ConnectError::Unreachable {
            uri: self.uri.clone(),
            source,
        }
    }
}

/// HTTP/2 windows: a first push of many megabytes is not paced by round trips.
const WINDOW: u32 = 4 << 20;

/// Not less than what Istio's control plane allows, half of its own 30 s: it takes the third PING that comes sooner for an attack, and
/// ends the connection (ENHANCE_YOUR_CALM). `pilot/pkg/grpc/grpc.go`, `ServerOptions`; gRPC's `http2_server.go`, `handlePing`.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_is_asked_no_more_often_whether_it_lives_than_istios_lets_its_clients() {
        let controller = Controller::new("https://istiod:15012", "root", "token");
        assert!(controller.keepalive_interval > Duration::from_secs(15));
        // And a controller that has gone without a word is noticed within half a minute.
        let noticed = controller.keepalive_interval + controller.keepalive_timeout;
        assert!(noticed <= Duration::from_secs(30), "{noticed:?}");
    }
}
