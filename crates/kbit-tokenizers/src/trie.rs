//! A trie over bytes: which tokens begin a text.

/// No node.
const NONE: u32 = u32::MAX;

/// Tokens by the bytes of their texts.
#[derive(Debug)]
pub(crate) struct Trie {
    nodes: Vec<Node>,
    /// Children of the root by their byte, which are the most.
    roots: [u32; 256],
}

#[derive(Clone, Copy, Debug)]
struct Node {
    byte: u8,
    token: Option<u32>,
    first_child: u32,
    next_sibling: u32,
}

impl Trie {
    /// Of several tokens with one text the last counts.
    pub(crate) fn new<'t>(tokens: impl Iterator<Item = (&'t str, u32)>) -> Self {
        let mut trie = Self { nodes: Vec::new(), roots: [NONE; 256] };
        for (text, token) in tokens {
            let mut at = NONE;
            for byte in text.bytes() {
                at = match trie.child(at, byte) {
                    Some(child) => child,
                    None => trie.add(at, byte),
                };
            }
            if let Some(node) = trie.nodes.get_mut(at as usize) {
                node.token = Some(token);
            }
        }
        trie
    }

    fn add(&mut self, parent: u32, byte: u8) -> u32 {
        // Texts are in memory, so their bytes have numbers.
        let new = u32::try_from(self.nodes.len()).unwrap_or(NONE);
        let before = match self.nodes.get_mut(parent as usize) {
            None => std::mem::replace(&mut self.roots[usize::from(byte)], new),
            Some(node) => std::mem::replace(&mut node.first_child, new),
        };
        self.nodes.push(Node { byte, token: None, first_child: NONE, next_sibling: before });
        new
    }

    /// The child of a node, or of the root where `parent` is no node.
    fn child(&self, parent: u32, byte: u8) -> Option<u32> {
        let mut child = match self.nodes.get(parent as usize) {
            None => return Some(self.roots[usize::from(byte)]).filter(|&root| root != NONE),
            Some(node) => node.first_child,
        };
        while let Some(node) = self.nodes.get(child as usize) {
            if node.byte == byte {
                return Some(child);
            }
            child = node.next_sibling;
        }
        None
    }

    /// The tokens that begin `text`, shortest first: their lengths in bytes and ids.
    pub(crate) fn prefixes<'t>(&'t self, text: &'t [u8]) -> impl Iterator<Item = (usize, u32)> + 't {
        self.path(text).enumerate().filter_map(|(at, node)| Some((at + 1, node.token?)))
    }

    /// How many bytes of `text` begin some token, whether or not that token is there to its end.
    pub(crate) fn shared(&self, text: &[u8]) -> usize {
        self.path(text).count()
    }

    fn path<'t>(&'t self, text: &'t [u8]) -> impl Iterator<Item = &'t Node> + 't {
        let mut at = NONE;
        text.iter().map_while(move |&byte| {
            at = self.child(at, byte)?;
            self.nodes.get(at as usize)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_all_tokens_that_begin_a_text() {
        let trie = Trie::new([("a", 0), ("abc", 1), ("ab", 2), ("b", 3), ("a", 4)].into_iter());
        assert_eq!(trie.prefixes(b"abcd").collect::<Vec<_>>(), [(1, 4), (2, 2), (3, 1)]);
        assert_eq!(trie.prefixes(b"xa").count(), 0);
        assert_eq!(trie.prefixes(b"").count(), 0);
    }

    #[test]
    fn shares_the_begin_of_a_token() {
        let trie = Trie::new([("<one>", 0)].into_iter());
        assert_eq!(trie.shared(b"<on!"), 3);
        assert_eq!(trie.shared(b"on"), 0);
    }
}
