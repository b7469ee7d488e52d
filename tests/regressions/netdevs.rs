//! What a netdev can do, and every later change of it, is asked, watched and told.
