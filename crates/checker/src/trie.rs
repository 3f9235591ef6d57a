//! A persistent map from small numbers to values: copies share what they have in common, and a union looks only at what differs.

use std::collections::HashSet;
use std::rc::Rc;

/// Children of a node, and values of a leaf.
const WIDTH: usize = 16;
const BITS: u32 = WIDTH.trailing_zeros();

#[derive(Debug)]
enum Node<V> {
    Leaf([V; WIDTH]),
    Inner([Option<Rc<Node<V>>>; WIDTH]),
}

impl<V: Clone> Clone for Node<V> {
    fn clone(&self) -> Self {
        match self {
            Self::Leaf(values) => Self::Leaf(values.clone()),
            Self::Inner(children) => Self::Inner(children.clone()),
        }
    }
}

/// What was never set has the default value.
#[derive(Clone, Debug)]
pub struct Trie<V> {
    root: Option<Rc<Node<V>>>,
    /// Levels below the root.
    height: u32,
}

impl<V> Default for Trie<V> {
    fn default() -> Self {
        Self { root: None, height: 0 }
    }
}

fn place(at: usize, level: u32) -> usize {
    (at >> (level * BITS)) % WIDTH
}

impl<V: Clone + Default + PartialEq> Trie<V> {
    pub fn get(&self, at: usize) -> Option<&V> {
        if at >> (self.height * BITS) >= WIDTH {
            return None;
        }
        let (mut node, mut level) = (self.root.as_deref()?, self.height);
        loop {
            match node {
                Node::Leaf(values) => return values.get(at % WIDTH),
                Node::Inner(children) => node = children[place(at, level)].as_deref()?,
            }
            level -= 1;
        }
    }

    pub fn set(&mut self, at: usize, value: V) {
        while at >> (self.height * BITS) >= WIDTH {
            self.grow();
        }
        set_below(&mut self.root, self.height, at, value);
    }

    /// Calls `see` for all values but those in nodes that were looked at before: what many maps share is seen once.
    pub fn visit(&self, looked_at: &mut HashSet<usize>, see: &mut impl FnMut(usize, &V)) {
        if let Some(root) = &self.root {
            visit_below(root, self.height, 0, looked_at, see);
        }
    }

    fn grow(&mut self) {
        self.height += 1;
        self.root = self.root.take().map(|below| {
            let mut children = [const { None }; WIDTH];
            children[0] = Some(below);
            Rc::new(Node::Inner(children))
        });
    }

    /// Takes over what `other` has; `join` decides where both have something and differ.
    pub fn merge(&mut self, other: &Self, join: &impl Fn(&V, &V) -> V) {
        let mut other = other.clone();
        while self.height < other.height {
            self.grow();
        }
        while other.height < self.height {
            other.grow();
        }
        self.root = union(self.root.take(), other.root.as_ref(), join);
    }
}

fn visit_below<V>(
    node: &Rc<Node<V>>,
    level: u32,
    first: usize,
    looked_at: &mut HashSet<usize>,
    see: &mut impl FnMut(usize, &V),
) {
    if !looked_at.insert(Rc::as_ptr(node).addr()) {
        return;
    }
    match &**node {
        Node::Leaf(values) => values.iter().enumerate().for_each(|(at, value)| see(first + at, value)),
        Node::Inner(children) => {
            for (at, child) in children.iter().enumerate() {
                if let Some(child) = child {
                    visit_below(child, level - 1, first + (at << (level * BITS)), looked_at, see);
                }
            }
        }
    }
}

fn set_below<V: Clone + Default>(node: &mut Option<Rc<Node<V>>>, level: u32, at: usize, value: V) {
    let node = node.get_or_insert_with(|| {
        Rc::new(if level == 0 {
            Node::Leaf(std::array::from_fn(|_| V::default()))
        } else {
            Node::Inner([const { None }; WIDTH])
        })
    });
    match Rc::make_mut(node) {
        Node::Leaf(values) => values[at % WIDTH] = value,
        Node::Inner(children) => set_below(&mut children[place(at, level)], level - 1, at, value),
    }
}

/// One of the two itself, if the other brings nothing new: so that later unions see at once that they are the same.
fn union<V: Clone + PartialEq>(
    mine: Option<Rc<Node<V>>>,
    theirs: Option<&Rc<Node<V>>>,
    join: &impl Fn(&V, &V) -> V,
) -> Option<Rc<Node<V>>> {
    let (mine, theirs) = match (mine, theirs) {
        (None, theirs) => return theirs.cloned(),
        (mine, None) => return mine,
        (Some(mine), Some(theirs)) => (mine, theirs),
    };
    if Rc::ptr_eq(&mine, theirs) {
        return Some(mine);
    }
    match (&*mine, &**theirs) {
        (Node::Leaf(left), Node::Leaf(right)) => {
            let joined: [V; WIDTH] =
                std::array::from_fn(|i| if left[i] == right[i] { left[i].clone() } else { join(&left[i], &right[i]) });
            if joined == *left {
                Some(mine)
            } else if joined == *right {
                Some(theirs.clone())
            } else {
                Some(Rc::new(Node::Leaf(joined)))
            }
        }
        (Node::Inner(left), Node::Inner(right)) => {
            let joined: [_; WIDTH] = std::array::from_fn(|i| union(left[i].clone(), right[i].as_ref(), join));
            let same = |all: &[Option<Rc<Node<V>>>; WIDTH]| {
                joined.iter().zip(all).all(|(one, other)| match (one, other) {
                    (Some(one), Some(other)) => Rc::ptr_eq(one, other),
                    (None, None) => true,
                    _ => false,
                })
            };
            if same(left) {
                Some(mine)
            } else if same(right) {
                Some(theirs.clone())
            } else {
                Some(Rc::new(Node::Inner(joined)))
            }
        }
        _ => unreachable!("both have the same height"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn is_a_map_whose_union_is_that_of_maps() {
        let mut state = 1_u64;
        let mut random = |end: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % end
        };
        let mut all: Vec<(Trie<u64>, BTreeMap<usize, u64>)> = vec![Default::default(); 8];
        for round in 1..20_000 {
            let (one, other) = (random(8) as usize, random(8) as usize);
            let (mut trie, mut map) = all[one].clone();
            if random(3) == 0 {
                let (theirs, their_map) = &all[other];
                trie.merge(theirs, &|a, b| *a.max(b));
                for (&at, &value) in their_map {
                    let mine = map.entry(at).or_default();
                    *mine = value.max(*mine);
                }
            } else {
                let at = random(if round < 1_000 { 20 } else { 5_000 }) as usize;
                trie.set(at, round);
                map.insert(at, round);
            }
            assert!(map.iter().all(|(&at, value)| trie.get(at) == Some(value)));
            let absent = random(9_000) as usize;
            assert_eq!(trie.get(absent).copied().unwrap_or(0), map.get(&absent).copied().unwrap_or(0));
            all[one] = (trie, map);
        }
    }
}
