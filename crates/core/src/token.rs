//! `causal-metadata` on the wire: a context as text that only this cluster can have made.
//!
//! base64url without padding of: version byte, postcard of the context, the 8 bytes of SipHash-2-4 over what precedes, under
//! the cluster's context key. SipHash (Aumasson and Bernstein, 2012) is made to authenticate short messages, and costs a tenth of
//! what an HMAC does on them. The code keeps a client's mistake, or another cluster's token, from poisoning a clock; it is no
//! secret and grants nothing.

use std::hash::Hasher;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use siphasher::sip::SipHasher24;

use kvnode_types::causal::Context;

const VERSION: u8 = 2;
const MAC_LEN: usize = 8;
/// About what an origin and its number take.
const ENTRY_LEN: usize = 16;
/// Longer texts are refused unread. A context of 1,000 origins stays below half of it.
const TEXT_LEN_MAX: usize = 65_536;

/// Makes and checks tokens under one key.
#[derive(Clone, Debug)]
pub struct Seal(SipHasher24);

impl Seal {
    /// Of the key the first half counts: SipHash takes 128 bits.
    pub fn new(key: &[u8; 32]) -> Self {
        let (key, _) = key.split_first_chunk().expect("32 bytes have a half");
        Self(SipHasher24::new_with_key(key))
    }

    fn tag(&self, signed: &[u8]) -> [u8; MAC_LEN] {
        let mut hasher = self.0;
        hasher.write(signed);
        hasher.finish().to_le_bytes()
    }

    /// The text of a context.
    pub fn encode(&self, context: &Context) -> String {
        let mut start = Vec::with_capacity(2 + MAC_LEN + ENTRY_LEN * context.seen.len());
        start.push(VERSION);
        let mut bytes = postcard::to_extend(context, start).expect("a context holds nothing that postcard refuses");
        let tag = self.tag(&bytes);
        bytes.extend_from_slice(&tag);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The context of a text, or `None` if this cluster did not make the text.
    pub fn decode(&self, text: &str) -> Option<Context> {
        if text.len() > TEXT_LEN_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (signed, tag) = bytes.split_at_checked(bytes.len().checked_sub(MAC_LEN)?)?;
        if self.tag(signed) != tag {
            return None;
        }
        let (&VERSION, body) = signed.split_first()? else { return None };
        postcard::from_bytes(body).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvnode_types::ident::{Epoch, Incarnation, NodeId, Origin};

    fn ours() -> Seal {
        Seal::new(&[7; 32])
    }

    fn context(nodes: u32) -> Context {
        let origin = |node| Origin {
            node: NodeId(node),
            epoch: Epoch(1),
            incarnation: Incarnation(1_900_000_000_000 + u64::from(node)),
        };
        Context { epoch: Epoch(1), seen: (1..=nodes).map(|node| (origin(node), 1_000_000)).collect() }
    }

    #[test]
    fn comes_back_as_it_went() {
        for nodes in [0, 1, 6, 100] {
            assert_eq!(ours().decode(&ours().encode(&context(nodes))), Some(context(nodes)));
        }
    }

    #[test]
    fn six_nodes_fit_160_characters() {
        let text = ours().encode(&context(6));
        assert!(text.len() <= 160, "{} characters", text.len());
    }

    #[test]
    fn anything_else_is_refused() {
        let good = ours().encode(&context(3));
        assert_eq!(Seal::new(&[8; 32]).decode(&good), None, "another cluster's");
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(bytes).unwrap();
            assert_eq!(ours().decode(&altered), None, "altered at {at}");
            assert_eq!(ours().decode(&good[..at]), None, "cut at {at}");
        }
        for bad in ["x", "null", "é", &format!("{good}A"), &"A".repeat(100_000)] {
            assert_eq!(ours().decode(bad), None);
        }
    }
}
