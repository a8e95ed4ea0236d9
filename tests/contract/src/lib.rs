//! A vhost-user client and a scripted back-end, for tests.
