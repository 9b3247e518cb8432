"""`paceline bench policy`: which policy chooses arms best, on synthetic and recorded rewards."""
