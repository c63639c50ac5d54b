"""Where a job's workspace comes from: uploads are checked and rewritten here, never unpacked."""
