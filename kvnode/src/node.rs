//! Stand-in: one node, in memory. To be replaced.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::config::Config;
use crate::core::request::{Answer, Op};
use crate::wire::ident::{Addr, Key, ShardId};

pub struct NotReady(pub String);

#[derive(Clone)]
pub struct NodeHandle {
    me: Addr,
    data: Arc<Mutex<BTreeMap<Key, Bytes>>>,
}

impl NodeHandle {
    #[expect(clippy::unused_async)]
    pub async fn start(config: &Config) -> Result<Self, String> {
        Ok(Self { me: config.socket_address.clone(), data: Arc::default() })
    }

    pub async fn failed(&self) -> String {
        std::future::pending().await
    }

    #[expect(clippy::unused_async)]
    pub async fn drain(&self) {}

    #[expect(clippy::unused_async)]
    pub async fn request(&self, op: Op, tokens: Vec<String>) -> Answer<String> {
        if tokens.iter().any(|t| t != "tok") {
            return Answer::Malformed;
        }
        let context = "tok".to_owned();
        let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        match op {
            Op::Get { key } => match data.get(&key).cloned() {
                Some(value) => Answer::Found { value, context },
                None => Answer::NotFound { context },
            },
            Op::Put { key, value } => match data.insert(key, value) {
                None => Answer::Created { context, replicas: 1 },
                Some(_) => Answer::Replaced { context, replicas: 1 },
            },
            Op::Delete { key } => match data.remove(&key) {
                None => Answer::NotFound { context },
                Some(_) => Answer::Deleted { context, replicas: 1 },
            },
            Op::List { prefix, after, limit } => {
                let from = after.map_or(Bound::Unbounded, Bound::Excluded);
                let all = data.range((from, Bound::Unbounded)).map(|(k, _)| k.clone());
                let mut keys: Vec<Key> = all.filter(|k| k.starts_with(&prefix)).take(limit as usize + 1).collect();
                let more = keys.len() > limit as usize;
                keys.truncate(limit as usize);
                Answer::Keys { next: keys.last().filter(|_| more).cloned(), keys, context }
            }
            Op::KeyCount { .. } => Answer::Count(data.len() as u64),
        }
    }

    pub fn view(&self) -> Vec<Addr> {
        vec![self.me.clone()]
    }

    pub fn shard_ids(&self) -> Result<Vec<ShardId>, NotReady> {
        Ok(vec![ShardId(1)])
    }

    pub fn own_shard(&self) -> Result<Option<ShardId>, NotReady> {
        Ok(Some(ShardId(1)))
    }

    pub fn shard_members(&self, id: ShardId) -> Result<Option<Vec<Addr>>, NotReady> {
        Ok((id == ShardId(1)).then(|| self.view()))
    }

    pub fn ready(&self) -> Result<(), NotReady> {
        Ok(())
    }

    pub fn status(&self) -> serde_json::Value {
        serde_json::json!({ "nodes": self.view() })
    }

    pub fn metrics(&self) -> String {
        String::from("kvnode_up 1\n")
    }

    #[expect(clippy::unused_async)]
    pub async fn peer_batch(&self, _: &hyper::HeaderMap, body: Bytes) -> Result<Bytes, (hyper::StatusCode, String)> {
        Ok(body)
    }
}
