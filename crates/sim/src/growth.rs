//! What an operation costs as the cluster grows: messages, bytes, and the size of a context. Exact, because time is virtual.

use kvnode_core::request::{Answer, Op};

use crate::world::World;

const OPERATIONS: u64 = 2_000;
const REPLICAS: usize = 3;
const SESSIONS: usize = 16;

/// The cost of one operation in a cluster of so many nodes, and what the cluster says at rest.
#[derive(Debug)]
pub struct Cost {
    pub batches: f64,
    pub bytes: f64,
    /// Characters of a context: the mean and the largest under load, and what is left at rest.
    pub context: f64,
    pub context_max: usize,
    pub context_rest: usize,
    /// Batches per second and node.
    pub rest: f64,
}

/// Sessions that put and get any of 1,000 keys in turn, each through any node, back to back with a pause of 5 ms.
pub fn cost(nodes: usize) -> Cost {
    let mut world = World::new(10, nodes, (nodes / REPLICAS) as u32, 1 << 20, None);
    (0..nodes).for_each(|node| world.start(node));
    assert!(world.run_until(20_000, World::all_ready), "{nodes} nodes form a cluster");
    world.run_until(6_000, |_| false);
    let rest = world.sent;
    world.run_until(10_000, |_| false);
    let rest = (world.sent - rest) as f64 / 10.0 / nodes as f64;
    let (batches, bytes) = (world.sent, world.bytes);
    let mut tokens: Vec<Option<String>> = vec![None; SESSIONS];
    let (mut asked, mut answered, mut sizes, mut largest) = (0, 0, 0, 0);
    for session in 0..SESSIONS {
        ask(&mut world, &mut asked, session, &tokens);
    }
    while answered < OPERATIONS {
        world.run_until(5, |_| false);
        for (id, answer) in std::mem::take(&mut world.answers) {
            let (session, context) = (id as usize % SESSIONS, context_of(answer));
            answered += 1;
            sizes += context.len();
            largest = largest.max(context.len());
            tokens[session] = Some(context);
            ask(&mut world, &mut asked, session, &tokens);
        }
    }
    let per = |count: u64| count as f64 / answered as f64;
    let (batches, bytes) = (per(world.sent - batches), per(world.bytes - bytes));
    world.answers.clear();
    world.run_until(8_000, |_| false);
    world.answers.clear();
    ask(&mut world, &mut asked, 0, &tokens);
    world.run_until(1_000, |world| !world.answers.is_empty());
    let context_rest = world.answers.pop().map_or(0, |(_, answer)| context_of(answer).len());
    Cost { batches, bytes, context: sizes as f64 / answered as f64, context_max: largest, context_rest, rest }
}

fn ask(world: &mut World, asked: &mut u64, session: usize, tokens: &[Option<String>]) {
    let key = format!("key-{}", world.rng.below(1_000)).as_str().into();
    let node = world.rng.below((world.nodes.len() - crate::world::JOINERS) as u64) as usize;
    let id = *asked / SESSIONS as u64 * SESSIONS as u64 + session as u64 + SESSIONS as u64;
    *asked += 1;
    let op = if world.rng.percent(50) { Op::Get { key } } else { Op::Put { key, value: "1".into() } };
    world.request(node, id, op, tokens[session].clone().into_iter().collect());
}

fn context_of(answer: Option<Answer<String>>) -> String {
    match answer {
        Some(
            Answer::Created { context, .. }
            | Answer::Replaced { context, .. }
            | Answer::Found { context, .. }
            | Answer::NotFound { context, .. },
        ) => context,
        other => panic!("a healthy cluster answers {other:?}"),
    }
}
