//! floe: freeze, and let it flow.
