//! Listings: one page of the keys of all shards, in order.
//!
//! The node that a client asks asks every shard for a page, itself included, and merges them; a page ends where the first shard's
//! page ends that has more. All pages must be of one layout, or keys would be lacking or doubled; a listing that a new layout has
//! overtaken begins anew.

use std::collections::BTreeMap;

use kvnode_types::causal::{Context, Vector};
use kvnode_types::ident::{Epoch, Key, ShardId, Slot};

use super::Core;
use super::deadline::Span;
use super::request::{Answer, Op};
use super::serve::Requester;
use crate::store::Result;

/// Versions read for one page of a listing, at most: a page may be shorter than asked for.
const LIST_READ_MAX: usize = 10_000;
/// Bytes of keys on one page.
const LIST_WEIGHT_MAX: usize = 512 << 10;
/// Bytes read for one page, about: nobody else is served meanwhile.
const LIST_BYTES_MAX: usize = 32 << 20;
/// Versions that are looked at together.
const LIST_AT_ONCE: usize = 64;

/// Listings under way: the pages of the shards that have answered.
type Pages = BTreeMap<ShardId, Option<(Vec<Key>, Option<Key>)>>;

/// Listings of this node's clients.
#[derive(Debug, Default)]
pub(super) struct Listings {
    last_id: u64,
    open: BTreeMap<u64, Gather>,
    /// The layout has overtaken them.
    overtaken: Vec<(Requester, Op, Context, Span)>,
}

#[derive(Debug)]
struct Gather {
    requester: Requester,
    op: Op,
    span: Span,
    /// The client's own context.
    asked: Context,
    /// All pages must be of this layout.
    epoch: Epoch,
    limit: usize,
    context: Context,
    pages: Pages,
}

impl Core {
    /// Asks every shard for a page.
    pub(super) fn gather(&mut self, requester: Requester, op: Op, context: Context, span: Span) -> Result<()> {
        let Op::List { limit, .. } = op else { return Ok(()) };
        let shards: Vec<ShardId> =
            self.topology.as_ref().map(|topology| topology.layout.shards.keys().copied().collect()).unwrap_or_default();
        self.listings.last_id += 1;
        let id = self.listings.last_id;
        let pages = shards.iter().map(|&shard| (shard, None)).collect();
        let epoch = self.topology.as_ref().map_or(Epoch(0), |topology| topology.layout.epoch);
        let gather = Gather {
            requester,
            op: op.clone(),
            span,
            asked: context.clone(),
            epoch,
            limit: limit as usize,
            context: context.clone(),
            pages,
        };
        self.listings.open.insert(id, gather);
        for shard in shards {
            self.ask_shard(Requester::Gather(id, shard), shard, op.clone(), context.clone(), span)?;
        }
        Ok(())
    }

    /// One shard's page has come, or the reason why there is none.
    pub(super) fn gathered(&mut self, id: u64, shard: ShardId, answer: Answer) {
        let Some(gather) = self.listings.open.get_mut(&id) else { return };
        let moved = matches!(&answer, Answer::Keys { context, .. } if context.epoch != gather.epoch);
        if moved || matches!(answer, Answer::NoSuchShard) {
            // The layout has changed on the way: a page of each would lack or double keys.
            if let Some(gather) = self.listings.open.remove(&id) {
                self.listings.overtaken.push((gather.requester, gather.op, gather.asked, gather.span));
            }
            return;
        }
        let Answer::Keys { keys, next, context } = answer else {
            // A page that lacks a shard is no page.
            if let Some(gather) = self.listings.open.remove(&id) {
                self.answer(gather.requester, answer);
            }
            return;
        };
        gather.context.merge(&context);
        gather.pages.insert(shard, Some((keys, next)));
        if gather.pages.values().all(Option::is_some)
            && let Some(gather) = self.listings.open.remove(&id)
        {
            let (keys, next) = merge_pages(gather.pages, gather.limit);
            let mut context = gather.context;
            self.prune(&mut context.seen);
            self.answer(gather.requester, Answer::Keys { keys, next, context });
        }
    }

    /// Begins anew what the layout has overtaken.
    pub(super) fn list_again(&mut self) -> Result<()> {
        for (requester, op, context, span) in std::mem::take(&mut self.listings.overtaken) {
            self.gather(requester, op, context, span)?;
        }
        Ok(())
    }

    /// One page of this shard's keys.
    pub(super) fn list(
        &mut self,
        requester: Requester,
        prefix: &str,
        after: Option<Key>,
        limit: u32,
        own: Vector,
        foreign: Vector,
    ) -> Result<()> {
        let mut seen = own;
        seen.merge(&foreign);
        let (mut keys, mut last, mut weight, mut read, mut bytes) = (Vec::new(), after, 0, 0, 0);
        let page = (limit as usize).clamp(1, 1_000);
        let more = 'pages: loop {
            // One more than the page takes tells whether it is the last.
            let at_once = (page - keys.len() + 1).min(LIST_AT_ONCE);
            let versions = self.store.list(prefix, last.as_ref(), at_once)?;
            let end = versions.len() < at_once;
            read += versions.len();
            for (key, version) in versions {
                if keys.len() == page || weight >= LIST_WEIGHT_MAX || bytes >= LIST_BYTES_MAX {
                    break 'pages true;
                }
                bytes += version.read;
                if self.bearings.owns(Slot::of(&key)) {
                    seen.raise(version.dot.origin, version.dot.seq);
                    seen.merge(&version.deps);
                }
                last = Some(key.clone());
                if version.has_value && self.bearings.owns(Slot::of(&key)) {
                    weight += key.len();
                    keys.push(key);
                }
            }
            if end || read >= LIST_READ_MAX {
                break !end;
            }
        };
        let context = self.context(seen);
        self.answer(requester, Answer::Keys { keys, next: if more { last } else { None }, context });
        Ok(())
    }
}

/// One page out of one page per shard. It ends where the first shard's page ends that has more.
fn merge_pages(pages: Pages, limit: usize) -> (Vec<Key>, Option<Key>) {
    let pages: Vec<(Vec<Key>, Option<Key>)> = pages.into_values().flatten().collect();
    let horizon = pages.iter().filter_map(|(_, next)| next.clone()).min();
    let mut keys: Vec<Key> = pages.into_iter().flat_map(|(keys, _)| keys).collect();
    keys.retain(|key| horizon.as_ref().is_none_or(|horizon| key <= horizon));
    keys.sort_unstable();
    if keys.len() > limit {
        keys.truncate(limit);
        let next = keys.last().cloned();
        return (keys, next);
    }
    (keys, horizon)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(keys: &[&str], next: Option<&str>) -> Option<(Vec<Key>, Option<Key>)> {
        Some((keys.iter().map(|&key| key.into()).collect(), next.map(Key::from)))
    }

    #[test]
    fn a_page_leaves_out_what_a_shard_has_not_told_yet() {
        let pages = Pages::from([(ShardId(1), page(&["a", "c"], Some("c"))), (ShardId(2), page(&["b", "d"], None))]);
        let (keys, next) = merge_pages(pages, 2);
        assert_eq!((keys, next), (vec!["a".into(), "b".into()], Some("b".into())));
        let pages = Pages::from([(ShardId(1), page(&["a", "c"], Some("c"))), (ShardId(2), page(&["b", "d"], None))]);
        let (keys, next) = merge_pages(pages, 10);
        assert_eq!((keys, next), (vec!["a".into(), "b".into(), "c".into()], Some("c".into())));
    }

    #[test]
    fn the_last_page_has_no_next() {
        let pages = Pages::from([(ShardId(1), page(&["a"], None)), (ShardId(2), page(&[], None))]);
        assert_eq!(merge_pages(pages, 10), (vec!["a".into()], None));
    }
}
