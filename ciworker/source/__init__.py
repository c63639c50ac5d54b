"""Where a job's workspace comes from: uploads and the trees of repositories are checked and
rewritten here, never unpacked."""
