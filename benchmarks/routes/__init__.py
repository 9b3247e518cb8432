"""`paceline bench routes`: which way of placing requests finds what engines have cached."""
