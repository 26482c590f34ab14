"""Pictures, understood once: from what a client sent to upright, verified, right-sized RGB."""
