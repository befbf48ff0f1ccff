//! Which blocks of the cache hold whose keys and values.

use std::collections::{BTreeSet, HashMap};

use tributary_protocol::id::Digest;

/// A block of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub(crate) u32);

/// All blocks: in use, kept for a prefix that may come again, or free.
///
/// A full block is known by a digest that chains over everything before it, starting from the
/// tenant, the base and the adapter version, so a prefix is found only where all of these agree.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    free: Vec<BlockId>,
    by_key: HashMap<Digest, BlockId>,
    /// Known blocks that nobody uses, the longest unused first.
    unused: BTreeSet<(u64, BlockId)>,
    moment: u64,
}

#[derive(Debug, Clone, Default)]
struct Block {
    users: u32,
    key: Option<Digest>,
    last_used: u64,
}

impl BlockPool {
    /// A pool of free blocks.
    #[must_use]
    pub fn new(count: u32) -> Self {
        Self {
            blocks: vec![Block::default(); count as usize],
            free: (0..count).rev().map(BlockId).collect(),
            by_key: HashMap::new(),
            unused: BTreeSet::new(),
            moment: 0,
        }
    }

    /// Blocks in all.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that a request can have now.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len() + self.unused.len()
    }

    /// Takes a block for new content, forgetting the longest unused prefix if none is free.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                let (_, id) = self.unused.pop_first()?;
                let key = self.blocks[id.0 as usize].key.take();
                if let Some(key) = key {
                    self.by_key.remove(&key);
                }
                id
            }
        };
        self.blocks[id.0 as usize].users = 1;
        Some(id)
    }

    /// Takes the block with the content that `key` names, if it is there.
    pub fn reuse(&mut self, key: &Digest) -> Option<BlockId> {
        let id = *self.by_key.get(key)?;
        let block = &mut self.blocks[id.0 as usize];
        if block.users == 0 {
            self.unused.remove(&(block.last_used, id));
        }
        block.users += 1;
        Some(id)
    }

    /// Names the content of a full block; the first block with a content keeps the name.
    pub fn name(&mut self, id: BlockId, key: Digest) {
        if let std::collections::hash_map::Entry::Vacant(entry) = self.by_key.entry(key) {
            entry.insert(id);
            self.blocks[id.0 as usize].key = Some(key);
        }
    }

    /// Gives a block back; a named one is kept until its place is needed.
    pub fn release(&mut self, id: BlockId) {
        self.moment += 1;
        let block = &mut self.blocks[id.0 as usize];
        block.users -= 1;
        if block.users > 0 {
            return;
        }
        if block.key.is_some() {
            block.last_used = self.moment;
            self.unused.insert((self.moment, id));
        } else {
            self.free.push(id);
        }
    }
}

/// The digest that the chain of a tenant's blocks starts from.
pub(super) fn root(tenant: &str, base: Digest, adapter: Option<Digest>) -> Digest {
    let mut bytes = base.as_bytes().to_vec();
    bytes.extend_from_slice(adapter.map_or([0; 32], |adapter| *adapter.as_bytes()).as_slice());
    bytes.extend_from_slice(tenant.as_bytes());
    Digest::of(&bytes)
}

/// The digest of a full block behind `before`.
pub(super) fn chain(before: Digest, tokens: &[u32]) -> Digest {
    let mut bytes = before.as_bytes().to_vec();
    for token in tokens {
        bytes.extend_from_slice(&token.to_le_bytes());
    }
    Digest::of(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_blocks_are_kept_until_their_place_is_needed() {
        let mut pool = BlockPool::new(2);
        let (one, two) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        assert_eq!(pool.allocate(), None);
        let key = Digest::of(b"one");
        pool.name(one, key);
        pool.release(one);
        assert_eq!(pool.available(), 1);
        assert_eq!(pool.reuse(&key), Some(one));
        assert_eq!(pool.allocate(), None);
        pool.release(one);
        pool.release(two);
        assert_eq!(pool.allocate(), Some(two));
        assert_eq!(pool.allocate(), Some(one));
        assert_eq!(pool.reuse(&key), None);
    }

    #[test]
    fn tenant_base_and_adapter_start_different_chains() {
        let (base, adapter) = (Digest::of(b"base"), Digest::of(b"adapter"));
        let roots = [
            root("ash", base, None),
            root("elm", base, None),
            root("ash", adapter, None),
            root("ash", base, Some(adapter)),
        ];
        let keys: BTreeSet<Digest> = roots.iter().map(|&root| chain(root, &[1, 2])).collect();
        assert_eq!(keys.len(), roots.len());
    }
}
