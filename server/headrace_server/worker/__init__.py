"""The agent of one job: another process than the server's, at the other end of the private contract."""
