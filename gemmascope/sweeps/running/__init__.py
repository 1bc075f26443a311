"""Running a sweep that is ready, in this process or shared among workers."""
