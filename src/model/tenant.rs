use std::fmt;
use std::sync::Arc;

/// A tenant's name: 1 to 150 bytes of ASCII letters, digits and `!-_.*'()`, not `.` or `..` (Loki's rules).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(Arc<str>);

/// Why a tenant's name was refused; the texts are Loki's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TenantError {
    /// No header, or an empty one.
    #[error("no org id")]
    Missing,
    /// `|` names several tenants, which only reads may.
    #[error("multiple org IDs present")]
    Multiple,
    /// Longer than 150 bytes.
    #[error("tenant ID is too long: max 150 characters")]
    TooLong,
    /// `.` or `..`
    #[error("tenant ID is '.' or '..'")]
    Unsafe,
    /// A character outside the set.
    #[error("tenant ID '{0}' contains unsupported character '{1}'")]
    Character(String, char),
}

impl Tenant {
    /// Longest name, in bytes.
    pub const MAX_LEN: usize = 150;

    /// # Errors
    /// The name breaks one of Loki's rules.
    pub fn new(name: &str) -> Result<Self, TenantError> {
        if name.is_empty() {
            return Err(TenantError::Missing);
        }
        if name.contains('|') {
            return Err(TenantError::Multiple);
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "!-_.*'()".contains(c);
        if let Some(c) = name.chars().find(|c| !allowed(*c)) {
            return Err(TenantError::Character(name.chars().take(Self::MAX_LEN).collect(), c));
        }
        if name.len() > Self::MAX_LEN {
            return Err(TenantError::TooLong);
        }
        if name == "." || name == ".." {
            return Err(TenantError::Unsafe);
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_lokis_rules() {
        assert!(Tenant::new("fake").is_ok());
        assert!(Tenant::new(&"x".repeat(150)).is_ok());
        assert_eq!(Tenant::new(""), Err(TenantError::Missing));
        assert_eq!(Tenant::new("a|b"), Err(TenantError::Multiple));
        assert_eq!(Tenant::new(".."), Err(TenantError::Unsafe));
        assert_eq!(Tenant::new(&"x".repeat(151)), Err(TenantError::TooLong));
        assert_eq!(
            Tenant::new("a/b").map_err(|e| e.to_string()),
            Err("tenant ID 'a/b' contains unsupported character '/'".to_string())
        );
    }
}
