//! Which request is it? The table of paths and of the methods that each has.

use hyper::Method;

/// A path that exists. Parts of the path are as they came, still percent-encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// `/kvs/<key>`
    Key(&'a str),
    /// `/kvs`
    Keys,
    View,
    ShardIds,
    NodeShardId,
    ShardMembers(&'a str),
    KeyCount(&'a str),
    /// `/shard/add-member/<id>`
    AddMember(&'a str),
    Reshard,
    /// `/view/recover`
    Recover,
    Health,
    Ready,
    Status,
    Metrics,
    /// Faults injected here.
    Drill,
    /// Where another node opens a stream of batches.
    Peer,
}

const READ: &[Method] = &[Method::GET, Method::HEAD];
const READ_AND_WRITE: &[Method] = &[Method::GET, Method::HEAD, Method::PUT, Method::DELETE];

impl<'a> Route<'a> {
    /// The route of a raw path, if there is one.
    pub fn of(path: &'a str) -> Option<Self> {
        let exact = match path {
            "/kvs" => Self::Keys,
            "/view" => Self::View,
            "/view/recover" => Self::Recover,
            "/shard/reshard" => Self::Reshard,
            "/shard/ids" => Self::ShardIds,
            "/shard/node-shard-id" => Self::NodeShardId,
            "/health" => Self::Health,
            "/ready" => Self::Ready,
            "/status" => Self::Status,
            "/metrics" => Self::Metrics,
            "/drill" => Self::Drill,
            crate::peer::PATH => Self::Peer,
            _ => return Self::with_parameter(path),
        };
        Some(exact)
    }

    fn with_parameter(path: &'a str) -> Option<Self> {
        let after = |prefix| path.strip_prefix(prefix).filter(|rest: &&str| !rest.is_empty());
        after("/kvs/")
            .map(Self::Key)
            .or_else(|| after("/shard/members/").map(Self::ShardMembers))
            .or_else(|| after("/shard/key-count/").map(Self::KeyCount))
            .or_else(|| after("/shard/add-member/").map(Self::AddMember))
    }

    /// The methods that the path has.
    pub fn methods(self) -> &'static [Method] {
        match self {
            Self::Key(_) | Self::View | Self::Reshard | Self::Drill => READ_AND_WRITE,
            Self::AddMember(_) | Self::Recover => &[Method::PUT],
            Self::Peer => &[Method::GET],
            _ => READ,
        }
    }

    /// Whether the request works on data, and so is finished before the node stops and refused after.
    pub fn is_data(self) -> bool {
        matches!(self, Self::Key(_) | Self::Keys | Self::KeyCount(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_exist() {
        let table = [
            ("/kvs", Route::Keys),
            ("/kvs/x", Route::Key("x")),
            ("/kvs/a/b%2Fc//", Route::Key("a/b%2Fc//")),
            ("/kvs//", Route::Key("/")),
            ("/view", Route::View),
            ("/shard/ids", Route::ShardIds),
            ("/shard/node-shard-id", Route::NodeShardId),
            ("/shard/members/s1", Route::ShardMembers("s1")),
            ("/shard/key-count/nope", Route::KeyCount("nope")),
            ("/shard/add-member/s1", Route::AddMember("s1")),
            ("/shard/reshard", Route::Reshard),
            ("/view/recover", Route::Recover),
            ("/health", Route::Health),
            ("/ready", Route::Ready),
            ("/status", Route::Status),
            ("/metrics", Route::Metrics),
            ("/drill", Route::Drill),
            ("/peer", Route::Peer),
        ];
        for (path, route) in table {
            assert_eq!(Route::of(path), Some(route), "{path}");
        }
    }

    #[test]
    fn paths_that_do_not() {
        let unknown = ["", "/", "*", "/kvs/", "/kv", "/kvsx", "/view/", "/VIEW", "/shard", "/shard/", "/shard/ids/"];
        let more = ["/shard/members", "/shard/members/", "/shard/key-count/", "/shard/reshard/", "/shard/add-member/"];
        for path in unknown.iter().chain(&more).chain(&["/peer/", "/peer/v1", "/health/x", "//kvs/x"]) {
            assert_eq!(Route::of(path), None, "{path}");
        }
    }

    #[test]
    fn methods_of_paths() {
        assert!(
            Route::Key("x").methods().contains(&Method::PUT) && Route::Key("x").methods().contains(&Method::DELETE)
        );
        for route in [Route::Keys, Route::ShardIds, Route::Ready, Route::Metrics] {
            assert_eq!(route.methods(), READ);
        }
        assert_eq!(Route::Peer.methods(), [Method::GET]);
    }
}
