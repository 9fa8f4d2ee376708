"""Where features meet disk."""
