//! Whole requests on real files, by both engines, with and without direct I/O.

use super::*;

/// Every way to use a file here.
fn fixtures() -> Vec<(String, Fixture)> {
    let mut engines = vec![Choice::Threads];
    match Uring::probe() {
        Ok(()) => engines.push(Choice::IoUring),
        Err(error) => eprintln!("SKIP: io_uring is not to be had here ({error})"),
    }
    let mut fixtures = Vec::new();
    for engine in engines {
        for direct in [false, true] {
            let settings = Settings {
                engine,
                ..Settings::default()
            };
            let options = Options {
                direct,
                ..Options::default()
            };
            match Fixture::with(settings, options) {
                Ok(fixture) => fixtures.push((format!("{engine:?} direct={direct}"), fixture)),
                Err(error) if direct => eprintln!("SKIP: no direct I/O here: {error:#}"),
                Err(error) => panic!("{error:#}"),
            }
        }
    }
    fixtures
}

#[test]
fn what_is_written_is_read_back_wherever_its_buffers_lie() {
    const LENGTH: usize = 160 << 10;
    for (name, mut fixture) in fixtures() {
        let mut queue = fixture.real();
        // Misaligned, of odd lengths, more than fits one bounce buffer.
        let content = pattern(LENGTH, 1);
        for cuts in [&[][..], &[1], &[512, 1024], &[4096, 4097, 9000]] {
            fixture.guest.recycle();
            let mut data = Vec::new();
            let mut from = 0;
            for to in cuts.iter().copied().chain([LENGTH]) {
                data.push(fixture.guest.put(&content[from..to]));
                fixture.guest.put(&[0; 3]);
                from = to;
            }
            let chain = fixture.guest.chain(OUT, 16, &data, &[]);
            assert_eq!(fixture.run(&mut queue, &chain), (OK, 1), "{name}");
            assert!(fixture.content()[8192..][..LENGTH] == content, "{name}");
            let memory = fixture.guest.memory.clone();
            for buffer in &data {
                let blank = vec![0xff; buffer.length as usize];
                memory.write_slice(&blank, buffer.address).unwrap();
            }
            let chain = fixture.guest.chain(IN, 16, &[], &data);
            let used = LENGTH as u32 + 1;
            assert_eq!(fixture.run(&mut queue, &chain), (OK, used), "{name}");
            let parts = data.iter().flat_map(|part| fixture.guest.get(*part));
            assert!(parts.collect::<Vec<_>>() == content, "{name}");
        }
    }
}

#[test]
fn many_misaligned_requests_share_few_bounce_buffers() {
    for (name, mut fixture) in fixtures() {
        let mut queue = fixture.real();
        let mut chains = Vec::new();
        for i in 0..64 {
            fixture.guest.put(&[0]);
            let mut chain = fixture.write(i * 16, &pattern(8192, i as u8));
            chain.head = i as u16;
            let outcome = queue.take(&chain);
            assert_eq!(outcome, Outcome::Deferred);
            chains.push(chain);
        }
        let answers = reap(&mut queue, 64);
        let mut heads: Vec<_> = answers.into_iter().map(|(head, _)| head).collect();
        heads.sort_unstable();
        assert_eq!(heads, (0..64).collect::<Vec<_>>(), "{name}");
        for (i, chain) in chains.iter().enumerate() {
            assert_eq!(fixture.guest.answer(chain), OK, "{name}");
            let found = &fixture.content()[i * 8192..][..8192];
            assert!(found == pattern(8192, i as u8), "{name}");
        }
        assert!(queue.bounces_made <= BOUNCES);
        assert_eq!(queue.bounces.len(), queue.bounces_made, "all are back");
    }
}

#[test]
fn cleared_ranges_read_as_zeroes() {
    for (name, mut fixture) in fixtures() {
        let mut queue = fixture.real();
        for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 1), (WRITE_ZEROES, 0)] {
            let file = fixture.file.as_file();
            file.write_all_at(&[0xaa; 1 << 20], 0).unwrap();
            let segments = [segment(8, 64, flags), segment(2040, 8, flags)];
            let chain = fixture.segments(kind, &segments);
            assert_eq!(fixture.run(&mut queue, &chain), (OK, 1), "{name}");
            let mut expected = vec![0xaa; 1 << 20];
            expected[4096..][..32768].fill(0);
            expected[2040 * 512..].fill(0);
            assert!(fixture.content() == expected, "{name}: type {kind}");
        }
    }
}

#[test]
fn a_request_over_1024_buffers_is_done_whole() {
    for (name, mut fixture) in fixtures() {
        let mut queue = fixture.real();
        let content = pattern(1500 * 512, 1);
        let chunks = content.chunks(512);
        let data: Vec<_> = chunks.map(|part| fixture.guest.put(part)).collect();
        let chain = fixture.guest.chain(OUT, 0, &data, &[]);
        assert_eq!(fixture.run(&mut queue, &chain), (OK, 1), "{name}");
        assert!(fixture.content()[..content.len()] == content, "{name}");
    }
}

/// Pages of a file in the page cache that are not on the disk, by
/// cachestat(2); `None` before Linux 6.5.
fn unwritten_pages(file: &std::fs::File) -> Option<u64> {
    use std::os::fd::AsRawFd;
    const CACHESTAT: libc::c_long = 451;
    // Offset and length, 0 for all; then cached, dirty, under writeback,
    // evicted, recently evicted.
    let (all, mut counts) = ([0u64; 2], [0u64; 5]);
    // SAFETY: the kernel reads `all` and writes `counts`, which have the sizes
    // of its structures.
    let result = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_raw_fd(),
            all.as_ptr(),
            counts.as_mut_ptr(),
            0,
        )
    };
    (result == 0).then(|| counts[1] + counts[2])
}

/// What the kernel has written, not what we asked for: with the fdatasync or
/// the RWF_DSYNC deleted in an engine, its part of this fails.
#[test]
fn a_flush_and_a_durable_write_leave_nothing_unwritten() {
    for (name, mut fixture) in fixtures() {
        let mut queue = fixture.real();
        // One write may be written back by chance before it is looked at.
        let mut seen = 0;
        for generation in 0..10 {
            let chain = fixture.write(8, &pattern(64 << 10, generation));
            assert_eq!(fixture.run(&mut queue, &chain), (OK, 1), "{name}");
            let Some(unwritten) = unwritten_pages(fixture.file.as_file()) else {
                eprintln!("SKIP: this kernel has no cachestat");
                return;
            };
            seen += unwritten;
            let chain = fixture.flush();
            assert_eq!(fixture.run(&mut queue, &chain), (OK, 1), "{name}");
            let unwritten = unwritten_pages(fixture.file.as_file());
            assert_eq!(unwritten, Some(0), "{name}: after a flush");
        }
        if name.contains("direct=true") {
            assert_eq!(seen, 0, "{name}: pages that went to the cache");
        } else if seen == 0 {
            eprintln!("SKIP: the file system of temporary files writes nothing back");
            continue;
        }

        fixture.set_writeback(false);
        let chain = fixture.write(8, &pattern(64 << 10, 99));
        assert_eq!(fixture.run(&mut queue, &chain), (OK, 1), "{name}");
        let unwritten = unwritten_pages(fixture.file.as_file());
        assert_eq!(unwritten, Some(0), "{name}: after a durable write");
    }
}

#[test]
fn an_image_cut_short_under_us_is_an_error_and_not_zeroes() {
    for (name, mut fixture) in fixtures() {
        let mut queue = fixture.real();
        fixture.file.as_file().set_len(4096).unwrap();
        let data = fixture.guest.allocate(8192, 4096);
        let chain = fixture.guest.chain(IN, 0, &[], &[data]);
        assert_eq!(fixture.run(&mut queue, &chain), (IOERR, 4097), "{name}");
    }
}

#[test]
fn a_ring_that_ends_lets_go_of_guest_memory_only_when_the_kernel_has() {
    for (name, mut fixture) in fixtures() {
        let mut queue = fixture.real();
        for i in 0..32 {
            let chain = fixture.write(i * 8, &[0x5a; 4096]);
            let _ = queue.take(&chain);
        }
        queue.submit().unwrap();
        queue.end();
        queue.map(Arc::default());
        let memory = Arc::downgrade(&fixture.guest.memory);
        fixture.guest = Guest::new();
        assert_eq!(memory.strong_count(), 0, "{name}");
        // The same engine serves the next ring.
        start(&mut queue, true, &fixture.guest);
        let chain = fixture.write(0, &[0xa5; 4096]);
        assert_eq!(fixture.run(&mut queue, &chain), (OK, 1), "{name}");
        assert_eq!(fixture.content()[..4096], [0xa5; 4096], "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The disk against a plain vector.
    #[test]
    fn a_disk_remembers_what_it_was_told(
        requests in prop::collection::vec(
            (0..5u8, 0..2040u64, 1..9u32, any::<u8>(), 0..600u32), 1..40)
    ) {
        for (name, mut fixture) in fixtures() {
            let mut queue = fixture.real();
            let mut model = vec![0u8; 1 << 20];
            for (kind, sector, sectors, generation, skew) in &requests {
                fixture.guest.recycle();
                fixture.guest.allocate(*skew, 1);
                let length = *sectors as usize * 512;
                let at = *sector as usize * 512;
                let range = at..at + length;
                let data = pattern(length, *generation);
                let chain = match kind {
                    0 | 1 => {
                        model[range].copy_from_slice(&data);
                        fixture.write(*sector, &data)
                    }
                    2 | 3 => {
                        model[range].fill(0);
                        let kind = if *kind == 2 { DISCARD } else { WRITE_ZEROES };
                        fixture.segments(kind, &[segment(*sector, *sectors, 0)])
                    }
                    _ => {
                        let target = fixture.guest.allocate(length as u32, 1);
                        let chain = fixture.guest.chain(IN, *sector, &[], &[target]);
                        let (status, _) = fixture.run(&mut queue, &chain);
                        prop_assert_eq!(status, OK);
                        prop_assert!(fixture.guest.get(target) == model[range], "{}", name);
                        continue;
                    }
                };
                prop_assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
            }
            prop_assert!(fixture.content() == model, "{}", name);
        }
    }
}
