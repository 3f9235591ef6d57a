//! Peers prove that they know the cluster's secret: each body carries an HMAC-SHA256 of itself.
//!
//! That keeps strangers and nodes of other clusters out. It does not hide anything; where the network is not trusted, data
//! on it can still be read.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The header that carries the proof.
pub const HEADER: &str = "x-kvnode-proof";

/// The secret that all nodes of a cluster were started with, if any.
#[derive(Clone)]
pub struct Secret(Option<Vec<u8>>);

impl Secret {
    pub fn new(secret: Option<&str>) -> Self {
        Self(secret.map(|text| text.as_bytes().to_vec()))
    }

    fn mac(&self, body: &[u8]) -> Option<Hmac<Sha256>> {
        let key = self.0.as_ref()?;
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.update(body);
        Some(mac)
    }

    /// The proof for a body; empty where no secret is set.
    pub fn prove(&self, body: &[u8]) -> String {
        self.mac(body).map_or_else(String::new, |mac| URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    }

    /// Whether `proof` shows that the sender of `body` has the same secret, or has none as we.
    pub fn accepts(&self, body: &[u8], proof: &str) -> bool {
        match self.mac(body) {
            None => proof.is_empty(),
            Some(mac) => URL_SAFE_NO_PAD.decode(proof).is_ok_and(|tag| mac.verify_slice(&tag).is_ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_secret_and_the_same_body_are_accepted() {
        let (ours, other, none) = (Secret::new(Some("a")), Secret::new(Some("b")), Secret::new(None));
        assert!(ours.accepts(b"body", &ours.prove(b"body")));
        assert!(!ours.accepts(b"other", &ours.prove(b"body")));
        assert!(!ours.accepts(b"body", &other.prove(b"body")));
        assert!(!ours.accepts(b"body", &none.prove(b"body")));
        assert!(!none.accepts(b"body", &ours.prove(b"body")));
        assert!(none.accepts(b"body", &none.prove(b"body")));
    }
}
