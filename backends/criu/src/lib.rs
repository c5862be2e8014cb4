//! The CRIU backend of stasis: CRIU runs inside the container's own namespaces, so that it needs no privilege
//! outside of them. Nothing of it runs between captures.
