//! Where nodes are that are named by words.
//!
//! The system's look-up blocks, for many seconds where a name server does not answer, and can't be given up. So look-ups have a few
//! threads of their own, and none of those that the disk's syncs use; a name is looked up once at a time, whoever asks; what was found
//! is remembered, and still used where nothing newer can be learned.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use kvnode_core::topology::NODES_MAX;
use kvnode_types::ident::Addr;

/// Threads that look names up. More than one, so that a name that nobody knows does not hold up all others.
const THREADS_MAX: usize = 4;
/// How long a link waits for a look-up; the look-up goes on, for whoever asks next.
const WAIT_MAX: Duration = Duration::from_millis(900);
/// What was found holds for so long, unless nobody is there any more.
const FOUND_HOLDS: Duration = Duration::from_secs(30);
/// After a failure there is another look-up no sooner.
const FAILED_HOLDS: Duration = Duration::from_secs(1);
/// Names that are remembered and waited for: those of the nodes that there can be, and of as many that have been.
const NAMES_MAX: usize = 2 * NODES_MAX;

type Found = Result<Vec<SocketAddr>, String>;
type LookUp = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Finds the addresses of nodes.
pub struct Names {
    look_up: Arc<LookUp>,
    asked: SyncSender<Addr>,
    asks: Arc<Mutex<Receiver<Addr>>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    names: HashMap<Addr, Name>,
    threads: usize,
    /// Of those, how many wait for a name.
    idle: usize,
    /// Names that no thread has taken yet.
    queued: usize,
}

#[derive(Default)]
struct Name {
    /// What was found last.
    found: Vec<SocketAddr>,
    /// Until when nobody needs to look.
    holds_until: Option<Instant>,
    /// Why the last look-up found nothing.
    failed: Option<String>,
    /// Who looks now tells it here.
    running: Option<watch::Sender<bool>>,
}

impl Default for Names {
    fn default() -> Self {
        Self::with(Arc::new(|name| name.to_socket_addrs().map(Iterator::collect)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Names {
    fn with(look_up: Arc<LookUp>) -> Self {
        let (asked, asks) = mpsc::sync_channel(NAMES_MAX);
        Self { look_up, asked, asks: Arc::new(Mutex::new(asks)), state: Arc::default() }
    }

    /// Where a node is.
    ///
    /// # Errors
    /// Why that can't be told now.
    pub async fn find(&self, addr: &Addr) -> Found {
        if let Some(ip) = addr.ip() {
            return Ok(vec![SocketAddr::new(ip, addr.port())]);
        }
        let running = match self.known_or_asked(addr)? {
            Known::Found(found) => return Ok(found),
            Known::Asked(running) => running,
        };
        self.wait_for(addr, running).await
    }

    /// Nobody was there: it may be somewhere else now.
    pub fn doubt(&self, addr: &Addr) {
        if let Some(name) = lock(&self.state).names.get_mut(addr) {
            name.holds_until = None;
        }
    }

    fn known_or_asked(&self, addr: &Addr) -> Result<Known, String> {
        let mut state = lock(&self.state);
        if state.names.len() >= NAMES_MAX && !state.names.contains_key(addr) {
            state.names.retain(|_, name| name.running.is_some());
        }
        let State { names, threads, idle, queued } = &mut *state;
        if names.len() >= NAMES_MAX && !names.contains_key(addr) {
            return Err("too many names are looked up".into());
        }
        let name = names.entry(addr.clone()).or_default();
        if name.holds_until.is_some_and(|until| Instant::now() < until) {
            return match &name.failed {
                Some(why) if name.found.is_empty() => Err(why.clone()),
                _ => Ok(Known::Found(name.found.clone())),
            };
        }
        if let Some(running) = &name.running {
            return Ok(Known::Asked(running.subscribe()));
        }
        // Those that wait may have names to look up already, and not have woken.
        if *queued >= *idle && *threads < THREADS_MAX {
            match self.start_thread() {
                Ok(()) => *threads += 1,
                Err(error) if *threads == 0 => return Err(format!("no thread for looking names up: {error}")),
                // Those that there are take longer.
                Err(_) => {}
            }
        }
        let (running, told) = watch::channel(false);
        self.asked.try_send(addr.clone()).map_err(|_| "too many names are looked up".to_owned())?;
        *queued += 1;
        name.running = Some(running);
        Ok(Known::Asked(told))
    }

    async fn wait_for(&self, addr: &Addr, mut running: watch::Receiver<bool>) -> Found {
        let in_time = timeout(WAIT_MAX, running.wait_for(|done| *done)).await.is_ok();
        let state = lock(&self.state);
        let name = state.names.get(addr);
        let found = name.map(|name| name.found.clone()).unwrap_or_default();
        if !found.is_empty() {
            return Ok(found);
        }
        let failed = name.and_then(|name| name.failed.clone()).filter(|_| in_time);
        Err(failed.unwrap_or_else(|| format!("no name server has answered for {addr} within {WAIT_MAX:?}")))
    }

    fn start_thread(&self) -> io::Result<()> {
        let (look_up, asks, state) = (self.look_up.clone(), self.asks.clone(), self.state.clone());
        let run = move || {
            loop {
                lock(&state).idle += 1;
                // One thread waits for the next name, and the others for their turn to do so.
                let asked = lock(&asks).recv();
                let Ok(addr) = asked else { return };
                let mut known = lock(&state);
                (known.idle, known.queued) = (known.idle - 1, known.queued - 1);
                drop(known);
                let found = look_up(addr.as_str());
                note(&mut lock(&state), &addr, found);
            }
        };
        thread::Builder::new().name("names".into()).spawn(run).map(drop)
    }
}

enum Known {
    Found(Vec<SocketAddr>),
    Asked(watch::Receiver<bool>),
}

fn note(state: &mut State, addr: &Addr, found: io::Result<Vec<SocketAddr>>) {
    let Some(name) = state.names.get_mut(addr) else { return };
    let found = found.and_then(|found| {
        if found.is_empty() {
            Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
        } else {
            Ok(found)
        }
    });
    let now = Instant::now();
    match found {
        Ok(found) => (name.found, name.failed, name.holds_until) = (found, None, Some(now + FOUND_HOLDS)),
        Err(error) => {
            name.failed = Some(format!("{addr} can't be looked up: {error}"));
            name.holds_until = Some(now + FAILED_HOLDS);
        }
    }
    if let Some(running) = name.running.take() {
        running.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn name(n: usize) -> Addr {
        format!("node-{n}:8090").parse().unwrap()
    }

    fn somewhere() -> Vec<SocketAddr> {
        vec!["10.0.0.1:8090".parse().unwrap()]
    }

    /// A name server that answers nobody until the test ends, and counts who asks.
    fn silent() -> (Names, Arc<AtomicUsize>, SyncSender<()>) {
        let begun = Arc::new(AtomicUsize::new(0));
        let (end, ended) = mpsc::sync_channel::<()>(0);
        let (count, ended) = (begun.clone(), Mutex::new(ended));
        let look_up = move |_: &str| {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = lock(&ended).recv();
            Ok(somewhere())
        };
        (Names::with(Arc::new(look_up)), begun, end)
    }

    /// Two names are asked for while one thread waits: it can take only one of them.
    #[tokio::test(flavor = "current_thread")]
    async fn a_name_does_not_wait_behind_another_that_nobody_answers() {
        let (end, ended) = mpsc::sync_channel::<()>(0);
        let ended = Mutex::new(ended);
        let look_up = move |asked: &str| {
            if asked == name(1).as_str() {
                let _ = lock(&ended).recv();
            }
            Ok(somewhere())
        };
        let names = Names::with(Arc::new(look_up));
        assert!(names.find(&name(0)).await.is_ok());
        let (one, other) = (name(1), name(2));
        let (hangs, found) = tokio::join!(names.find(&one), names.find(&other));
        assert!(hangs.is_err() && found.is_ok(), "{hangs:?} {found:?}");
        drop(end);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_name_server_that_never_answers_holds_up_few_threads() {
        let (names, begun, end) = silent();
        let names = Arc::new(names);
        for _ in 0..3 {
            let find = |n| {
                let names = names.clone();
                tokio::spawn(async move { names.find(&name(n)).await })
            };
            let asking: Vec<_> = (0..20).map(find).collect();
            for asked in asking {
                assert!(asked.await.unwrap().is_err(), "it gives up after its time");
            }
        }
        assert!(begun.load(Ordering::SeqCst) <= THREADS_MAX);
        let state = lock(&names.state);
        assert!(state.threads <= THREADS_MAX && state.names.len() == 20);
        drop((state, end));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_name_is_looked_up_once_for_all_who_ask() {
        let (names, begun, end) = silent();
        let asked = name(1);
        let (one, other, ()) = tokio::join!(names.find(&asked), names.find(&asked), async { drop(end) });
        assert_eq!((one, other), (Ok(somewhere()), Ok(somewhere())));
        assert_eq!(names.find(&asked).await, Ok(somewhere()));
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        let number: Addr = "[::1]:9".parse().unwrap();
        assert_eq!(names.find(&number).await, Ok(vec!["[::1]:9".parse().unwrap()]), "numbers need no look-up");
        assert_eq!(begun.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_was_found_is_used_until_something_newer_is_known() {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = calls.clone();
        let names = Names::with(Arc::new(move |_: &str| match count.fetch_add(1, Ordering::SeqCst) {
            0 => Ok(somewhere()),
            1 => Err(io::Error::other("the name server is gone")),
            _ => Ok(Vec::new()),
        }));
        let asked = name(1);
        assert_eq!(names.find(&asked).await, Ok(somewhere()));
        names.doubt(&asked);
        assert_eq!(names.find(&asked).await, Ok(somewhere()), "nothing newer is known");
        assert_eq!(calls.load(Ordering::SeqCst), 2, "it was looked up again");
        assert!(names.find(&name(2)).await.is_err_and(|why| why.contains("no address")));
    }
}
