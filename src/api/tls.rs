//! TLS of the listeners: certificate, key and client authentication from files.

use rustls::RootCertStore;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `http_tls_config` or `grpc_tls_config`.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// Certificate chain, PEM, the server's own first.
    pub cert_file: PathBuf,
    /// Private key, PEM (PKCS#8, PKCS#1 or SEC1), not encrypted.
    pub key_file: PathBuf,
    /// Authorities that sign the certificates of clients, PEM.
    pub client_ca_file: Option<PathBuf>,
    /// What is asked of clients.
    pub client_auth: ClientAuth,
}

/// `client_auth_type`, with Go's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// `NoClientCert`
    #[default]
    None,
    /// `VerifyClientCertIfGiven`
    VerifyIfGiven,
    /// `RequireAndVerifyClientCert`
    RequireAndVerify,
}

/// Why a listener has no TLS although it was configured. The server does not start.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or holds something else.
    #[error("{key}: {}: {reason}", path.display())]
    File {
        /// The configuration key that names the file.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificate and key do not fit each other, or are of a kind that is not supported.
    #[error("cert_file and key_file cannot be used together: {0}")]
    Pair(#[source] rustls::Error),
    /// The authorities of clients cannot be used.
    #[error("client_ca_file: {0}")]
    ClientCa(String),
    /// Clients are to be verified, and nothing says against what.
    #[error("client_auth_type {0} needs client_ca_file: the authorities that sign the certificates of clients")]
    NoClientCa(&'static str),
    /// Authorities are given and nobody is asked for a certificate.
    #[error(
        "client_ca_file is set but client_auth_type is NoClientCert, so nobody would be verified; \
             set RequireAndVerifyClientCert or VerifyClientCertIfGiven, or remove client_ca_file"
    )]
    UnusedClientCa,
    /// A name that does not exist, or asks for certificates without verifying them.
    #[error(
        "client_auth_type {0:?} is not supported; use NoClientCert, VerifyClientCertIfGiven or \
             RequireAndVerifyClientCert"
    )]
    ClientAuth(String),
}

impl std::str::FromStr for ClientAuth {
    type Err = TlsError;

    fn from_str(name: &str) -> Result<Self, TlsError> {
        match name {
            "" | "NoClientCert" => Ok(Self::None),
            "VerifyClientCertIfGiven" => Ok(Self::VerifyIfGiven),
            "RequireAndVerifyClientCert" => Ok(Self::RequireAndVerify),
            _ => Err(TlsError::ClientAuth(name.into())),
        }
    }
}

/// Loads the files. `alpn` are the protocols that the listener speaks, the preferred one first.
///
/// # Errors
/// [`TlsError`], which names the file or key that is wrong.
pub fn load(config: &TlsConfig, alpn: &[&str]) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Pair)?;
    let builder = match client_verifier(config, provider)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let chain = certificates("cert_file", &config.cert_file)?;
    let key =
        PrivateKeyDer::from_pem_file(&config.key_file).map_err(|e| file_error("key_file", &config.key_file, e))?;
    let mut server = builder.with_single_cert(chain, key).map_err(TlsError::Pair)?;
    server.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(Arc::new(server))
}

fn client_verifier(
    config: &TlsConfig,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    let file = match (config.client_auth, &config.client_ca_file) {
        (ClientAuth::None, None) => return Ok(None),
        (ClientAuth::None, Some(_)) => return Err(TlsError::UnusedClientCa),
        (ClientAuth::VerifyIfGiven, None) => return Err(TlsError::NoClientCa("VerifyClientCertIfGiven")),
        (ClientAuth::RequireAndVerify, None) => return Err(TlsError::NoClientCa("RequireAndVerifyClientCert")),
        (_, Some(file)) => file,
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("client_ca_file", file)? {
        roots.add(certificate).map_err(|e| TlsError::ClientCa(e.to_string()))?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if config.client_auth == ClientAuth::VerifyIfGiven {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map(Some).map_err(|e| TlsError::ClientCa(e.to_string()))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |e| file_error(key, path, e);
    let all: Vec<_> = CertificateDer::pem_file_iter(path).map_err(error)?.collect::<Result<_, _>>().map_err(error)?;
    if all.is_empty() {
        return Err(file_error(key, path, rustls_pki_types::pem::Error::NoItemsFound));
    }
    Ok(all)
}

fn file_error(key: &'static str, path: &Path, error: rustls_pki_types::pem::Error) -> TlsError {
    use rustls_pki_types::pem::Error;
    let reason = match error {
        Error::Io(e) => e.to_string(),
        Error::NoItemsFound if key == "key_file" => "no unencrypted private key in PEM format is in it".into(),
        Error::NoItemsFound => "no certificate in PEM format is in it".into(),
        other => format!("no valid PEM: {other}"),
    };
    TlsError::File { key, path: path.into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn testdata(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tls").join(name)
    }

    fn config() -> TlsConfig {
        TlsConfig {
            cert_file: testdata("server.crt"),
            key_file: testdata("server.key"),
            client_ca_file: None,
            client_auth: ClientAuth::None,
        }
    }

    fn error(change: impl FnOnce(&mut TlsConfig)) -> String {
        let mut config = config();
        change(&mut config);
        load(&config, &["h2"]).unwrap_err().to_string()
    }

    #[test]
    fn good_files_load() {
        assert_eq!(load(&config(), &["h2", "http/1.1"]).unwrap().alpn_protocols, [&b"h2"[..], b"http/1.1"]);
        for client_auth in [ClientAuth::VerifyIfGiven, ClientAuth::RequireAndVerify] {
            load(&TlsConfig { client_ca_file: Some(testdata("ca.crt")), client_auth, ..config() }, &[]).unwrap();
        }
    }

    #[test]
    fn errors_name_the_key_and_the_file() {
        let missing = error(|c| c.cert_file = testdata("absent.crt"));
        assert!(missing.starts_with("cert_file: ") && missing.contains("absent.crt: No such file"), "{missing}");
        let swapped = error(|c| c.cert_file = testdata("server.key"));
        assert!(swapped.contains("no certificate in PEM format"), "{swapped}");
        let swapped = error(|c| c.key_file = testdata("server.crt"));
        assert!(swapped.contains("no unencrypted private key"), "{swapped}");
        let other = error(|c| c.key_file = testdata("client.key"));
        assert!(other.starts_with("cert_file and key_file cannot be used together"), "{other}");
    }

    #[test]
    fn half_a_client_authentication_is_an_error() {
        let unused = error(|c| c.client_ca_file = Some(testdata("ca.crt")));
        assert!(unused.contains("nobody would be verified"), "{unused}");
        let no_ca = error(|c| c.client_auth = ClientAuth::RequireAndVerify);
        assert!(no_ca.contains("RequireAndVerifyClientCert needs client_ca_file"), "{no_ca}");
        let weak = "RequireAnyClientCert".parse::<ClientAuth>().unwrap_err().to_string();
        assert!(weak.contains("not supported"), "{weak}");
        assert_eq!("".parse::<ClientAuth>().unwrap(), ClientAuth::None);
    }
}
