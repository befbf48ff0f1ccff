use super::*;

fn images() -> Images {
    Images::synthetic(5, 12, 600, 300)
}

fn measure(findings: &Findings, defence: &str, name: &str) -> f64 {
    let row = findings.row(defence).unwrap_or_else(|| panic!("no {defence} in {findings:?}"));
    row.measure(name).unwrap_or_else(|| panic!("no {name} in {row:?}"))
}

#[test]
fn an_image_is_rebuilt_from_a_visible_update_and_not_through_noise_or_a_sum() {
    let findings = inversion::run(&images(), Size::Small, 1).unwrap();
    let open = measure(&findings, "none", "ssim");
    assert!(open > 0.8, "the attack works: {open}");
    for defence in ["record DP, epsilon 8", "record DP, epsilon 1"] {
        let left = measure(&findings, defence, "ssim");
        assert!(left < 0.4, "{defence} leaves {left}");
    }
    let summed = measure(&findings, "secure aggregation, the sum", "ssim");
    assert!(summed < open - 0.2, "a sum is worse than an update: {summed}");
    let masked = measure(&findings, "secure aggregation, one upload", "ssim");
    assert!(masked < 0.3, "masks leave nothing: {masked}");
}

#[test]
fn members_are_told_from_losses_and_not_beyond_what_epsilon_allows() {
    let findings = membership::run(&images(), Size::Small, 2).unwrap();
    let open = measure(&findings, "none", "ratio_advantage");
    assert!(open > 0.2, "the attack works: {findings:?}");
    let private = "record DP, epsilon 0.5";
    let left = measure(&findings, private, "ratio_advantage");
    // Some hundred guesses wander by a few hundredths.
    let allowed = measure(&findings, private, "advantage_max");
    assert!(left < allowed + 0.06 && left < open - 0.1, "{left} of {allowed}");
}

#[test]
fn a_fifth_of_hostile_tenants_ruins_the_mean_and_not_a_clipped_one_or_a_robust_rule() {
    for run in [sign_flip::run, label_flip::run] {
        let findings = run(&images(), Size::Small, 3).unwrap();
        let (spoilt, honest) =
            (measure(&findings, "mean", "accuracy"), measure(&findings, "mean", "accuracy_honest"));
        assert!(spoilt < honest - 0.3, "the attack works: {findings:?}");
        let clipped = measure(&findings, "clipping to 1", "accuracy");
        assert!(clipped > spoilt + 0.2, "clipping helps: {findings:?}");
        for rule in ["median", "trimmed mean, 0.25", "multi-Krum, 2 hostile, 8 selected"] {
            let (left, honest) =
                (measure(&findings, rule, "accuracy"), measure(&findings, rule, "accuracy_honest"));
            assert!(left > spoilt + 0.3 && left > honest - 0.1, "{rule} helps: {findings:?}");
        }
    }
}

#[test]
fn one_tenant_plants_a_trigger_into_the_mean_and_not_into_a_clipped_one_or_a_robust_rule() {
    let findings = backdoor::run(&images(), Size::Small, 4).unwrap();
    let planted = measure(&findings, "mean", "success");
    assert!(planted > 0.7, "the attack works: {findings:?}");
    let clipped = measure(&findings, "clipping to 1", "success");
    assert!(clipped < planted - 0.3, "clipping helps: {findings:?}");
    for rule in ["median", "trimmed mean, 0.25", "Krum, 2 hostile"] {
        let left = measure(&findings, rule, "success");
        assert!(left < planted - 0.3, "{rule} helps: {findings:?}");
    }
}

#[test]
fn what_was_found_becomes_a_section_with_pictures() {
    let findings = backdoor::run(&images(), Size::Small, 4).unwrap();
    let page = crate::report::Page::new("attacks").section(section::section(&findings).unwrap());
    let html = page.html();
    assert!(html.contains("data:image/png;base64,") && html.contains("clipping to 1"));
    assert!(section::text(&findings).contains("success"));
}
