//! The FDB stays consistent whatever moves, ages and is reopened.
