//! One-time registration tokens. A token is computed from the controller's key, the node and the
//! operation that made it, so it can be made again after a crash and stands in no record, no plan
//! and no state.

use node::{Error, ErrorKind, Result};

/// The controller's key for tokens.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

impl TokenKey {
    /// A new random key.
    ///
    /// # Errors
    /// The kernel gives no random bytes.
    pub fn random() -> Result<TokenKey> {
        crate::identity::random().map(TokenKey)
    }

    /// A key from the store.
    ///
    /// # Errors
    /// It has another length.
    pub fn from_bytes(bytes: &[u8]) -> Result<TokenKey> {
        bytes.try_into().map(TokenKey).map_err(|_| {
            Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the key for registration tokens has {} bytes, not 32",
                    bytes.len()
                ),
            )
        })
    }

    /// The key, for the store.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The token of a node that an operation makes.
    #[must_use]
    pub fn token(&self, operation: &str, node: &str) -> String {
        self.hash(operation, node).to_hex().to_string()
    }

    /// Whether it is that token, in the same time whatever is wrong with it.
    #[must_use]
    pub fn verify(&self, operation: &str, node: &str, token: &str) -> bool {
        // blake3 compares hashes in constant time
        blake3::Hash::from_hex(token).is_ok_and(|h| h == self.hash(operation, node))
    }

    fn hash(&self, operation: &str, node: &str) -> blake3::Hash {
        let mut h = blake3::Hasher::new_keyed(&self.0);
        h.update(&(operation.len() as u64).to_le_bytes());
        h.update(operation.as_bytes());
        h.update(node.as_bytes());
        h.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_for_one_node_of_one_operation() {
        let key = TokenKey::random().unwrap();
        let t = key.token("op1", "a");
        assert!(key.verify("op1", "a", &t));
        assert!(!key.verify("op2", "a", &t) && !key.verify("op1", "b", &t));
        assert!(!key.verify("op", "1a", &t) && !key.verify("op1", "a", "junk"));
        let same = TokenKey::from_bytes(key.as_bytes()).unwrap();
        assert_eq!(same.token("op1", "a"), t);
        assert!(TokenKey::from_bytes(&[1, 2]).is_err());
    }
}
