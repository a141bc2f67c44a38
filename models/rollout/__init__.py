"""The rollout protocol as pure state machines: events in, effects out; no clock, no network, no Ray."""
