//! Where the coordinator is.

use std::net::{SocketAddr, ToSocketAddrs};

use thiserror::Error;

/// Says why a coordinator's address is no place to connect to.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Not `HOST:PORT`.
    #[error("{address:?} is not HOST:PORT, as in coordinator.example.org:7700")]
    Form {
        /// What was given.
        address: String,
    },
    /// The name does not resolve.
    #[error("cannot find the host of {address}")]
    Resolve {
        /// What was given.
        address: String,
        /// What the resolver said.
        #[source]
        source: std::io::Error,
    },
    /// The name resolves to nothing.
    #[error("the host of {address} has no address")]
    Nowhere {
        /// What was given.
        address: String,
    },
}

/// The host part of `HOST:PORT`, which the coordinator's certificate must name.
///
/// # Errors
/// [`AddressError::Form`].
pub fn server_name(address: &str) -> Result<String, AddressError> {
    let form = || AddressError::Form { address: address.to_owned() };
    let (host, port) = address.rsplit_once(':').ok_or_else(form)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(form());
    }
    Ok(host.to_owned())
}

/// Finds the socket address of `HOST:PORT`, now: names may move.
///
/// # Errors
/// [`AddressError`].
pub async fn resolve(address: &str) -> Result<SocketAddr, AddressError> {
    server_name(address)?;
    let text = address.to_owned();
    let found = tokio::task::spawn_blocking(move || {
        text.to_socket_addrs().map(|mut addresses| addresses.next())
    })
    .await
    .expect("looking up a name does not panic");
    let address = address.to_owned();
    match found {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(AddressError::Nowhere { address }),
        Err(source) => Err(AddressError::Resolve { address, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_part_is_what_the_certificate_must_name() {
        assert_eq!(server_name("localhost:7700").unwrap(), "localhost");
        assert_eq!(server_name("[::1]:7700").unwrap(), "::1");
        for bad in ["localhost", ":7700", "a:b", "a:70000"] {
            assert!(server_name(bad).unwrap_err().to_string().contains("HOST:PORT"), "{bad}");
        }
    }
}
