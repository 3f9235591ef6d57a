//! Which request is it? The one table of paths, their methods, and what else the front end knows of each.
//!
//! A route is one entry here and one filter in the file of its group ([`super::filters`] shows how the two meet). A request is
//! looked up once, by the shell ([`super::handle`]), which needs the answer before any filter runs: the requests for single keys
//! and the nodes' own streams take a short path.

use hyper::Method;

/// The filters that stand together, in one file each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Single keys: the short path, no filter.
    Key,
    /// Streams between nodes: no filter either.
    Peer,
    Listing,
    View,
    Shard,
    Status,
    Probes,
    Metrics,
    Drill,
}

/// What a request works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// On data: it is finished before the node stops, and refused after that.
    Data,
    /// On who has what: it is noted in the log.
    Change,
    Other,
}

/// What is known of the requests for one pattern of paths and some methods.
#[derive(Debug)]
pub struct Entry {
    /// For metrics and logs: stable, without anything that the client chose.
    pub name: &'static str,
    /// The path, or how it begins and `<…>` for the rest.
    pub pattern: &'static str,
    /// How much of the pattern stands before its parameter; all of it where it has none.
    fixed: usize,
    pub methods: &'static [Method],
    pub group: Group,
    pub work: Work,
}

impl Entry {
    const fn new(
        name: &'static str,
        pattern: &'static str,
        methods: &'static [Method],
        group: Group,
        work: Work,
    ) -> Self {
        Self { name, pattern, fixed: before_parameter(pattern), methods, group, work }
    }

    const fn has_parameter(&self) -> bool {
        self.fixed < self.pattern.len()
    }

    /// Whether the path is one of this entry's. A parameter may have slashes, and is not empty.
    fn has_path(&self, path: &str) -> bool {
        if self.has_parameter() {
            path.len() > self.fixed && path.as_bytes().starts_with(&self.pattern.as_bytes()[..self.fixed])
        } else {
            path == self.pattern
        }
    }
}

const fn before_parameter(pattern: &str) -> usize {
    let bytes = pattern.as_bytes();
    let mut at = 0;
    while at < bytes.len() && bytes[at] != b'<' {
        at += 1;
    }
    at
}

const READ: &[Method] = &[Method::GET, Method::HEAD];
const ALL: &[Method] = &[Method::GET, Method::HEAD, Method::PUT, Method::DELETE];
const GET: &[Method] = &[Method::GET];
const PUT: &[Method] = &[Method::PUT];
const DELETE: &[Method] = &[Method::DELETE];

/// Makes each entry and the table of all of them, so that none can be missing there.
macro_rules! table {
    ($($entry:ident: $name:literal $pattern:literal $methods:ident $group:ident $work:ident;)+) => {
        $(pub static $entry: Entry = Entry::new($name, $pattern, $methods, Group::$group, Work::$work);)+
        /// Every route. Keys come first: they are what most requests are for.
        pub static TABLE: &[&Entry] = &[$(&$entry),+];
    };
}

table! {
    KEY:            "key"              "/kvs/<key>"              ALL    Key     Data;
    PEER:           "peer"             "/peer"                   GET    Peer    Other;
    KEYS:           "list-keys"        "/kvs"                    READ   Listing Data;
    VIEW_GET:       "get-view"         "/view"                   READ   View    Other;
    VIEW_PUT:       "put-view"         "/view"                   PUT    View    Change;
    VIEW_DELETE:    "delete-view"      "/view"                   DELETE View    Change;
    RECOVER:        "recover"          "/view/recover"           PUT    View    Change;
    SHARD_IDS:      "shard-ids"        "/shard/ids"              READ   Shard   Other;
    NODE_SHARD_ID:  "node-shard-id"    "/shard/node-shard-id"    READ   Shard   Other;
    SHARD_MEMBERS:  "shard-members"    "/shard/members/<id>"     READ   Shard   Other;
    KEY_COUNT:      "shard-key-count"  "/shard/key-count/<id>"   READ   Shard   Data;
    ADD_MEMBER:     "add-member"       "/shard/add-member/<id>"  PUT    Shard   Change;
    RESHARD_GET:    "get-reshard"      "/shard/reshard"          READ   Shard   Other;
    RESHARD_PUT:    "put-reshard"      "/shard/reshard"          PUT    Shard   Change;
    RESHARD_DELETE: "delete-reshard"   "/shard/reshard"          DELETE Shard   Change;
    HEALTH:         "health"           "/health"                 READ   Probes  Other;
    READY:          "ready"            "/ready"                  READ   Probes  Other;
    STATUS:         "status"           "/status"                 READ   Status  Other;
    METRICS:        "metrics"          "/metrics"                READ   Metrics Other;
    DRILL_GET:      "get-drill"        "/drill"                  READ   Drill   Other;
    DRILL_PUT:      "put-drill"        "/drill"                  PUT    Drill   Other;
    DRILL_DELETE:   "delete-drill"     "/drill"                  DELETE Drill   Other;
}

/// The entry of a request, and where in its path the parameter begins: at its end where it has none.
#[derive(Clone, Copy, Debug)]
pub struct Matched {
    pub entry: &'static Entry,
    parameter_at: usize,
}

impl Matched {
    /// The parameter as it came, still percent-encoded. `path`: the one that was looked up.
    pub fn parameter(self, path: &str) -> &str {
        path.get(self.parameter_at..).unwrap_or_default()
    }

    pub fn is(self, entry: &'static Entry) -> bool {
        std::ptr::eq(self.entry, entry)
    }
}

/// Why a request is for nothing that is here.
#[derive(Clone, Copy, Debug)]
pub enum NoRoute {
    Path,
    /// The path has other methods: those of all entries with this pattern.
    Method(&'static str),
}

/// The entry for a method and a raw path.
pub fn look_up(method: &Method, path: &str) -> Result<Matched, NoRoute> {
    let mut other = None;
    for &entry in TABLE {
        if entry.has_path(path) {
            if entry.methods.contains(method) {
                return Ok(Matched { entry, parameter_at: entry.fixed });
            }
            other = Some(entry.pattern);
        }
    }
    Err(other.map_or(NoRoute::Path, NoRoute::Method))
}

/// The methods of a pattern, in the table's order.
pub fn methods_of(pattern: &str) -> impl Iterator<Item = &'static Method> {
    TABLE.iter().filter(move |entry| entry.pattern == pattern).flat_map(|entry| entry.methods)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(method: Method, path: &str) -> Option<(&'static Entry, &str)> {
        look_up(&method, path).ok().map(|matched| (matched.entry, matched.parameter(path)))
    }

    #[test]
    fn paths_that_exist() {
        let table = [
            ("/kvs", &KEYS, ""),
            ("/kvs/x", &KEY, "x"),
            ("/kvs/a/b%2Fc//", &KEY, "a/b%2Fc//"),
            ("/kvs//", &KEY, "/"),
            ("/view", &VIEW_GET, ""),
            ("/shard/ids", &SHARD_IDS, ""),
            ("/shard/node-shard-id", &NODE_SHARD_ID, ""),
            ("/shard/members/s1", &SHARD_MEMBERS, "s1"),
            ("/shard/key-count/nope", &KEY_COUNT, "nope"),
            ("/shard/reshard", &RESHARD_GET, ""),
            ("/health", &HEALTH, ""),
            ("/ready", &READY, ""),
            ("/status", &STATUS, ""),
            ("/metrics", &METRICS, ""),
            ("/drill", &DRILL_GET, ""),
            (crate::link::PATH, &PEER, ""),
        ];
        for (path, entry, parameter) in table {
            let (is, rest) = found(Method::GET, path).unwrap_or_else(|| panic!("{path} is not found"));
            assert!(std::ptr::eq(is, entry) && rest == parameter, "{path}: {is:?} {rest}");
        }
        assert_eq!(found(Method::PUT, "/shard/add-member/s1").unwrap().1, "s1");
        assert_eq!(found(Method::PUT, "/view/recover").unwrap().0.name, "recover");
    }

    #[test]
    fn paths_that_do_not() {
        let unknown = ["", "/", "*", "/kvs/", "/kv", "/kvsx", "/view/", "/VIEW", "/shard", "/shard/", "/shard/ids/"];
        let more = ["/shard/members", "/shard/members/", "/shard/key-count/", "/shard/reshard/", "/shard/add-member/"];
        for path in unknown.iter().chain(&more).chain(&["/peer/", "/peer/v1", "/health/x", "//kvs/x"]) {
            assert!(matches!(look_up(&Method::GET, path), Err(NoRoute::Path)), "{path}");
        }
    }

    #[test]
    fn methods_that_a_path_does_not_have() {
        for (method, path, allowed) in [
            (Method::POST, "/kvs/x", "GET HEAD PUT DELETE"),
            (Method::POST, "/view", "GET HEAD PUT DELETE"),
            (Method::PUT, "/kvs", "GET HEAD"),
            (Method::GET, "/view/recover", "PUT"),
            (Method::HEAD, "/peer", "GET"),
        ] {
            let Err(NoRoute::Method(pattern)) = look_up(&method, path) else { panic!("{method} {path}") };
            assert_eq!(methods_of(pattern).map(Method::as_str).collect::<Vec<_>>().join(" "), allowed);
        }
    }

    #[test]
    fn no_two_entries_are_for_one_request() {
        for (at, one) in TABLE.iter().enumerate() {
            for other in &TABLE[at + 1..] {
                assert_ne!(one.name, other.name);
                let shared = one.methods.iter().any(|method| other.methods.contains(method));
                assert!(one.pattern != other.pattern || !shared, "{} and {}", one.name, other.name);
            }
        }
    }
}
