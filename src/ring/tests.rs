use super::*;

fn instance(id: &str, zone: &str, tokens: &[u32]) -> Instance {
    Instance {
        id: id.to_string(),
        addr: format!("{id}:9095"),
        state: InstanceState::Active,
        tokens: tokens.to_vec(),
        zone: zone.to_string(),
        last_heartbeat: Some(1000),
    }
}

fn ids(ring: &Ring, set: &ReplicationSet) -> Vec<String> {
    set.instances.iter().map(|i| ring.instances()[*i].id.clone()).collect()
}

#[test]
fn token_is_fnv_1_and_not_1a() {
    // Published FNV-1 32 vectors; FNV-1a of "a" is 0xe40c292c.
    assert_eq!(token_for("", ""), 0x811c_9dc5);
    assert_eq!(token_for("a", ""), 0x050c_5d7e);
    assert_eq!(token_for("", "a"), 0x050c_5d7e);
    assert_eq!(token_for("foo", "bar"), 0x31f0_b262);
}

#[test]
fn walk_is_clockwise_distinct_and_wraps() {
    let ring = Ring::new(
        RingConfig::default(),
        vec![instance("a", "", &[10, 40]), instance("b", "", &[20, 50]), instance("c", "", &[30, 60])],
    );
    let cases: &[(u32, usize, &[&str])] = &[
        (0, 1, &["a"]),
        (9, 1, &["a"]),
        // The token itself belongs to the next one: the first token > key.
        (10, 1, &["b"]),
        (60, 1, &["a"]),
        (u32::MAX, 2, &["a", "b"]),
        (25, 3, &["c", "a", "b"]),
        (55, 3, &["c", "a", "b"]),
    ];
    for (token, rf, expected) in cases {
        let set = ring.get(*token, *rf, 1000).expect("healthy");
        assert_eq!(ids(&ring, &set), *expected, "token {token} rf {rf}");
    }
}

#[test]
fn quorum_counts_before_the_unhealthy_leave() {
    // (rf, instances, dead) -> (instances in the set, max_errors) or (required, found)
    let cases: &[(usize, usize, usize, Result<(usize, usize), (usize, usize)>)] = &[
        (1, 1, 0, Ok((1, 0))),
        (1, 1, 1, Err((1, 0))),
        (3, 3, 0, Ok((3, 1))),
        (3, 3, 1, Ok((2, 0))),
        (3, 3, 2, Err((2, 1))),
        (3, 3, 3, Err((2, 0))),
        (3, 2, 0, Ok((2, 0))),
        (3, 1, 0, Err((2, 1))),
        (2, 2, 0, Ok((2, 0))),
        (2, 2, 1, Err((2, 1))),
        (5, 5, 2, Ok((3, 0))),
    ];
    for (rf, n, dead, expected) in cases {
        let members = (0..*n).map(|i| {
            let mut member = instance(&format!("i{i}"), "", &[i as u32 * 10]);
            // Half of the dead by state, half by silence.
            match i {
                i if i >= *dead => {}
                i if i % 2 == 0 => member.state = InstanceState::Leaving,
                _ => member.last_heartbeat = Some(1000 - 61),
            }
            member
        });
        let ring = Ring::new(RingConfig::default(), members.collect());
        let got = ring.get(5, *rf, 1000);
        match (expected, got) {
            (Ok((len, max_errors)), Ok(set)) => {
                assert_eq!((set.instances.len(), set.max_errors), (*len, *max_errors), "{rf} {n} {dead}");
                assert_eq!(set.min_success(), len - max_errors);
            }
            (Err(expected), Err(RingError::TooFewReplicas { required, found, unhealthy })) => {
                assert_eq!((required, found), *expected, "{rf} {n} {dead}");
                assert_eq!(unhealthy.len(), *dead);
            }
            (_, got) => panic!("{rf} {n} {dead}: {got:?}"),
        }
    }
}

#[test]
fn texts_are_lokis() {
    let ring = Ring::new(RingConfig::default(), vec![]);
    assert_eq!(ring.get(1, 1, 0).expect_err("empty").to_string(), "empty ring");
    let mut dead = [instance("a", "", &[1]), instance("b", "", &[2]), instance("c", "", &[3])];
    dead[0].state = InstanceState::Left;
    dead[1].last_heartbeat = Some(0);
    let ring = Ring::new(RingConfig::default(), dead.to_vec());
    assert_eq!(
        ring.get(0, 3, 1000).expect_err("two dead").to_string(),
        "at least 2 live replicas required, could only find 1 - unhealthy instances: a:9095,b:9095"
    );
}

#[test]
fn heartbeat_timeout_at_n_and_n_plus_1() {
    let ring = Ring::new(RingConfig::default(), vec![instance("a", "", &[1])]);
    assert!(ring.get(0, 1, 1060).is_ok());
    assert!(ring.get(0, 1, 1061).is_err());
    let never = RingConfig { heartbeat_timeout: 0, ..RingConfig::default() };
    assert!(Ring::new(never, vec![instance("a", "", &[1])]).get(0, 1, i64::MAX).is_ok());
}

#[test]
fn a_zone_is_taken_once() {
    let members = || {
        vec![
            instance("a", "z1", &[10]),
            instance("b", "z1", &[20]),
            instance("c", "z2", &[30]),
            instance("d", "z3", &[40]),
        ]
    };
    let zoned = Ring::new(RingConfig { zone_awareness: true, ..RingConfig::default() }, members());
    assert_eq!(ids(&zoned, &zoned.get(0, 3, 1000).expect("healthy")), ["a", "c", "d"]);
    let flat = Ring::new(RingConfig::default(), members());
    assert_eq!(ids(&flat, &flat.get(0, 3, 1000).expect("healthy")), ["a", "b", "c"]);
}

#[test]
fn static_rings_are_equal_everywhere_and_balanced() {
    let members = [("one", "h1:1"), ("two", "h2:1"), ("three", "h3:1")];
    let ring = Ring::of_static(members, 128);
    let other = Ring::of_static(members.into_iter().rev(), 128);
    let mut counts = [0usize; 3];
    for i in 0..30_000u32 {
        let token = token_for("tenant", &format!("{{job=\"{i}\"}}"));
        let set = ring.get(token, 1, 0).expect("healthy");
        assert_eq!(Ok(set.clone()), other.get(token, 1, 0));
        counts[set.instances[0]] += 1;
    }
    assert!(counts.iter().all(|c| (5_000..17_000).contains(c)), "{counts:?}");
}
