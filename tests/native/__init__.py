"""Models with plates and global sites of their own, against closed forms."""
