//! What is planned, in which order, and what is left alone.
