pub fn run(_: &super::Machine<'_>) -> super::Outcome { Err("reason=todo".into()) }
