//! The volume as a pure state machine: dirty map, intents, epochs, gate, ownership.
