"""Figures show the given numbers, regions match the layout, and bad input is an error."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from RATE_model.acting.rollout import Episodes
from RATE_model.errors import UserError
from RATE_model.memories.rate.layout import Layout
from RATE_model.plots import plot_attention, plot_bars, plot_curves, plot_memory, plot_success_by_length
from RATE_model.plots.attention import MAX_SEGMENTS, attention_figure, regions
from RATE_model.plots.bars import bars_figure
from RATE_model.plots.curves import curves_figure, read_metrics
from RATE_model.plots.gates import gates_figure
from RATE_model.plots.memory import memory_figure, memory_tokens, principal_plane, similarity_to_first
from RATE_model.plots.returns import returns_figure
from RATE_model.plots.seeds import seeds_figure
from RATE_model.plots.style import logarithmic_if_wide, save
from RATE_model.plots.success import panels_figure, success_figure
from tests.small_models import K, random_inputs, small_model

PNG = b"\x89PNG\r\n\x1a\n"


def panel(figure, gid):
    return next(axes for axes in figure.axes if axes.get_gid() == gid)


def line(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def maps_of(mode, steps=3 * K, **changes):
    seen = small_model(mode, **changes).inspect(*random_inputs(steps=steps))
    return seen["attention"], seen["states"]


# Success --------------------------------------------------------------------------------------------------------------


def test_success_lines_are_the_means_over_seeds():
    results = {"RATE": {90: [1.0, 0.8], 9: [1.0, 1.0], 900: [0.9, float("nan")]}, "DT": {9: 1.0, 90: 0.5}}
    axes = success_figure(results, trained=90, chance=0.5).axes[0]
    assert axes.get_xscale() == "log"
    np.testing.assert_allclose(line(axes, "RATE").get_xydata(), [[9, 1.0], [90, 0.9], [900, 0.9]])
    np.testing.assert_allclose(line(axes, "DT").get_xydata(), [[9, 1.0], [90, 0.5]])
    assert [90, 90] in [list(other.get_xdata()) for other in axes.lines], "no line at the longest trained length"
    assert any(other.get_linestyle() == ":" and set(other.get_ydata()) == {0.5} for other in axes.lines)


def test_success_band_is_standard_error_with_a_point_per_seed():
    axes = success_figure({"RATE": {9: [0.5, 1.0, 0.6], 90: [0.7, 0.7, 0.7]}}).axes[0]
    band, *points = axes.collections
    values = np.array([0.5, 1.0, 0.6])
    error = values.std(ddof=1) / np.sqrt(3)
    heights = band.get_paths()[0].vertices
    at_nine = heights[np.isclose(heights[:, 0], 9), 1]
    np.testing.assert_allclose([at_nine.min(), at_nine.max()], [values.mean() - error, values.mean() + error])
    assert sorted(np.concatenate([p.get_offsets()[:, 1] for p in points])) == sorted([0.5, 1.0, 0.6, 0.7, 0.7, 0.7])


def test_the_x_axis_of_success_can_be_renamed():
    assert success_figure({"RATE": {9: 1.0}}).axes[0].get_xlabel() == "episode length (steps)"
    assert success_figure({"RATE": {9: 1.0}}, xlabel="size").axes[0].get_xlabel() == "size"


def test_success_of_one_seed_has_no_band():
    assert not success_figure({"RATE": {9: [0.5], 90: 0.7}}).axes[0].collections


def test_a_variant_shares_the_colour_but_not_the_line_style():
    results = dict.fromkeys(("RATE", "RATE, without", "RATE, less", "DT", "MLP, less"), {9: 1.0})
    axes = success_figure(results).axes[0]
    lines = {label: line(axes, label) for label in results}
    colours = {label: lines[label].get_color() for label in results}
    assert colours["RATE"] == colours["RATE, without"] == colours["RATE, less"]
    assert len({colours[label] for label in ("RATE", "DT", "MLP, less")}) == 3
    dashes = [lines[label]._unscaled_dash_pattern for label in ("RATE", "RATE, without", "RATE, less")]
    assert len(set(map(str, dashes))) == 3


def test_coinciding_lines_are_drawn_side_by_side():
    axes = success_figure({"RATE": {9: 1.0, 90: 1.0}, "DT": {9: 1.0, 90: 1.0}}).axes[0]
    heights = [line(axes, label).get_transform().transform((9, 1.0))[1] for label in ("RATE", "DT")]
    assert 1 < heights[0] - heights[1] < 5


def test_a_label_looks_the_same_in_every_panel():
    panels = {"left": {"RATE": {9: 1.0}, "DT": {9: 0.5}}, "right": {"MLP": {9: 0.5, 90: 0.5}, "DT": {9: 0.5}}}
    figure = panels_figure(panels)
    left, right = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["left", "right"] and left.get_xlim() == right.get_xlim()
    assert line(left, "DT").get_color() == line(right, "DT").get_color() != line(right, "MLP").get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["RATE", "DT", "MLP"]
    with pytest.raises(UserError, match="no success rates"):
        panels_figure({"left": {}, "right": {"RATE": {}}})


@pytest.mark.parametrize("results", [{}, {"RATE": {}}])
def test_nothing_to_draw_is_an_error_and_leaves_no_file(results, tmp_path):
    with pytest.raises(UserError, match="no success rates"):
        plot_success_by_length(results, tmp_path / "success.png")
    assert not list(tmp_path.iterdir())


def test_published_numbers_are_drawn_too():
    axes = success_figure({"ours": {9: 1.0}}, published={"theirs": {480: 0.9, 90: [1.0, 0.9]}}).axes[0]
    np.testing.assert_allclose(line(axes, "theirs").get_xydata(), [[90, 0.95], [480, 0.9]])


def test_tick_labels_do_not_overlap():
    lengths = (9, 10, 30, 90, 9600, 1_000_000)
    axes = success_figure({"RATE": dict.fromkeys(lengths, 1.0)}).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["10", "30", "90", "9600", "1M"]


def test_a_figure_is_a_complete_png_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deeper" / "success.png"
    assert plot_success_by_length({"RATE": {9: 1.0}}, path) == path
    assert path.read_bytes().startswith(PNG)
    assert list(path.parent.iterdir()) == [path]


def test_an_unwritable_figure_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        save(Figure(), tmp_path / "file" / "picture.png")


# Curves ---------------------------------------------------------------------------------------------------------------


def metrics_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of_three_stages():
    rows = [
        {"step": 10 * i, "train_loss": 1.0 / i, "train_accuracy": 0.1 * i, "segments_count": 1 + i // 3}
        for i in range(1, 8)
    ]
    return [*rows, {"step": 70, "validation_loss": 0.2}]


def test_curves_are_the_metrics_against_the_step(tmp_path):
    path = metrics_file(tmp_path / "metrics.jsonl", rows_of_three_stages())
    figure = curves_figure({"run": read_metrics(path)}, ("train_loss", "train_accuracy"))
    loss, accuracy = figure.axes
    np.testing.assert_allclose(line(loss, "run").get_xydata(), [[10 * i, 1 / i] for i in range(1, 8)])
    np.testing.assert_allclose(line(accuracy, "run").get_ydata(), [0.1 * i for i in range(1, 8)])
    validation = [other for other in loss.lines if other.get_gid() == "validation"]
    np.testing.assert_allclose(validation[0].get_xydata(), [[70, 0.2]])
    assert loss.get_yscale() == "linear" == accuracy.get_yscale(), "less than a decade"


def test_losses_that_span_a_decade_have_a_logarithmic_axis():
    rows = [{"step": 10, "train_loss": 1.0}, {"step": 20, "train_loss": 0.05}]
    for figure in (
        curves_figure({"run": rows}, ["train_loss"]),
        seeds_figure({"run": {"1": rows, "2": rows}}, ["train_loss"]),
    ):
        assert figure.axes[0].get_yscale() == "log"
    scales = []
    for values in ([1.0, 0.1], [1.0, 0.2], [1.0, 0.0], [1.0, -1.0]):
        axes = Figure().subplots()
        axes.plot(values)
        logarithmic_if_wide(axes)
        scales.append(axes.get_yscale())
    assert scales == ["log", "linear", "linear", "linear"]


def test_stages_of_one_run_are_shaded_of_two_marked():
    rows = rows_of_three_stages()
    loss = curves_figure({"run": rows}, ["train_loss"]).axes[0]
    # The second stage begins after the last line of the first, at step 20, and its last line is that of step 50.
    assert [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in loss.patches] == [(20, 50)]
    assert [text.get_text() for text in loss.texts] == ["1 segment", "2 segments", "3 segments"]
    loss = curves_figure({"run": rows, "other": rows[:2]}, ["train_loss"]).axes[0]
    assert not loss.patches
    assert [other.get_xdata()[0] for other in loss.lines if other.get_gid() == "stage"] == [20, 50]


def test_non_finite_values_are_gaps(tmp_path):
    rows = [{"step": 1, "train_loss": 1.0}, {"step": 2, "train_loss": None}, {"step": 3, "train_loss": 0.5}]
    path = metrics_file(tmp_path / "metrics.jsonl", rows)
    drawn = line(curves_figure({"run": read_metrics(path)}, ["train_loss"]).axes[0], "run")
    np.testing.assert_array_equal(drawn.get_ydata(), [1.0, np.nan, 0.5])
    nothing = metrics_file(tmp_path / "null.jsonl", [{"step": 1, "train_loss": None}])
    assert plot_curves({"run": nothing}, tmp_path / "curves.png").read_bytes().startswith(PNG)


def test_damaged_metrics_are_skipped_with_a_warning(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train_loss": 1.0}\n{"step": 2, "tra')
    assert [row["step"] for row in read_metrics(path)] == [1] and not capsys.readouterr().err
    path.write_text('{"step": 1, "train_loss": 1.0}\nnoise\n{"step": 2}\n')
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    assert capsys.readouterr().err == f"warning: {path}: skipped 1 damaged lines, the first is line 2\n"
    path.write_text("noise\nnoise\n")
    with pytest.raises(UserError, match="no line of metrics"):
        read_metrics(path)


def test_missing_files_and_unknown_metrics_are_an_error(tmp_path):
    with pytest.raises(UserError, match="absent.jsonl"):
        plot_curves({"run": tmp_path / "absent.jsonl"}, tmp_path / "curves.png")
    path = metrics_file(tmp_path / "metrics.jsonl", [{"step": 1, "grad_norm": 1.0}])
    with pytest.raises(UserError, match="train_loss.*grad_norm"):
        plot_curves({"run": path}, tmp_path / "curves.png")
    with pytest.raises(UserError, match="none at all"):
        plot_curves({}, tmp_path / "curves.png")


# Attention ------------------------------------------------------------------------------------------------------------


def test_regions_are_those_of_the_layout():
    layout = Layout(steps=4, tokens=3, cached=8)
    found = regions(layout)
    assert found == {"cache": (0, 8), "read": (8, 11), "steps": (11, 23), "write": (23, 26)}
    assert found["write"] == (layout.cached + layout.written.start, layout.cached + layout.written.stop)
    assert regions(Layout(steps=4, tokens=0, cached=0)) == {"steps": (0, 12)}


def test_boundaries_and_bars_follow_the_layout():
    segments, _ = maps_of("RATE")
    figure = attention_figure(segments)
    for index, segment in enumerate(segments):
        axes, layout = panel(figure, f"layer None segment {index}"), segment.layout
        for name, (start, stop) in regions(layout).items():
            bar = next(patch for patch in axes.patches if patch.get_gid() == f"columns {name}")
            assert (bar.get_x(), bar.get_width()) == (start - 0.5, stop - start)
        upright = [other.get_xdata()[0] for other in axes.lines if other.get_xdata()[0] == other.get_xdata()[-1]]
        level = [other.get_ydata()[0] for other in axes.lines if other.get_ydata()[0] == other.get_ydata()[-1]]
        starts = [start for start, _ in regions(layout).values() if start]
        assert upright == [start - 0.5 for start in starts]
        assert level == [layout.tokens - 0.5, layout.written.start - 0.5]
    assert segments[1].layout.cached and not segments[0].layout.cached


def test_maps_show_attention_and_masked_cells_are_grey():
    segments, _ = maps_of("RATE")
    figure = attention_figure(segments, layer=1, head=0, row=1)
    for index, segment in enumerate(segments):
        shown = panel(figure, f"layer 1 segment {index}").images[0].get_array()
        truth = segment.attention[1, 1, 0].numpy()
        np.testing.assert_array_equal(shown.mask, truth == 0)
        np.testing.assert_allclose(shown.compressed(), np.maximum(truth[truth > 0], 1e-3), rtol=1e-6)


def test_attention_grid_has_a_row_per_layer_and_a_mean():
    segments, _ = maps_of("RATE")
    each, mean = attention_figure(segments, layer="each"), attention_figure(segments)
    for layer in range(2):
        shown = panel(each, f"layer {layer} segment 2").images[0].get_array()
        truth = segments[2].attention[layer, 0].mean(0).numpy()
        np.testing.assert_allclose(shown.compressed(), np.maximum(truth[truth > 0], 1e-3), rtol=1e-5)
    truth = segments[2].attention[:, 0].mean((0, 1)).numpy()
    shown = panel(mean, "layer None segment 2").images[0].get_array()
    np.testing.assert_allclose(shown.compressed(), np.maximum(truth[truth > 0], 1e-3), rtol=1e-5)


def test_steps_are_numbered_along_the_episode_at_their_observation_tokens():
    segments, _ = maps_of("RATE", steps=2 * K + 3)
    axes = panel(attention_figure(segments), "layer None segment 2")
    layout = segments[2].layout
    assert [text.get_text() for text in axes.get_xticklabels()] == ["9", "10", "11"]
    assert list(axes.get_xticks()) == [layout.cached + layout.tokens + 3 * step + 1 for step in range(3)]
    assert list(axes.get_yticks()) == [layout.tokens + 3 * step + 1 for step in range(3)]


def test_shares_are_the_observations_attention_to_each_region():
    segments, _ = maps_of("RATE")
    bands = panel(attention_figure(segments), "share segment 1").collections
    weights = segments[1].attention[:, 0].mean((0, 1))[segments[1].layout.observations]
    below = np.zeros(K)
    for band, name in zip(bands, ("cache", "read", "steps"), strict=True):
        start, stop = regions(segments[1].layout)[name]
        above = below + weights[:, start:stop].sum(1).numpy()
        # At the middle of step 5 + s, the band reaches from the regions before to its own share.
        for step in range(K):
            vertices = band.get_paths()[0].vertices
            heights = vertices[np.isclose(vertices[:, 0], K + step + 0.5), 1]
            assert np.isclose(heights, below[step], atol=1e-5).any()
            assert np.isclose(heights, above[step], atol=1e-5).any()
        below = above
    np.testing.assert_allclose(below, 1.0, atol=1e-5)


def test_a_model_without_memory_has_no_shares():
    segments, _ = maps_of("DT")
    assert not any((axes.get_gid() or "").startswith("share") for axes in attention_figure(segments).axes)


def test_of_many_segments_a_selection_is_drawn():
    segments, _ = maps_of("RMT", steps=9 * K)
    figure = attention_figure(segments)
    drawn = [int(axes.get_gid().split()[-1]) for axes in figure.axes if "layer" in (axes.get_gid() or "")]
    assert len(drawn) == MAX_SEGMENTS and drawn[0] == 0 and drawn[-1] == 8
    assert panel(figure, "layer None segment 8").get_title() == "segment 9"


def test_impossible_choices_are_an_error(tmp_path):
    segments, _ = maps_of("RATE")
    with pytest.raises(UserError, match="no segments"):
        plot_attention([], tmp_path / "map.png")
    with pytest.raises(UserError, match="no layer 2.*0 to 1"):
        plot_attention(segments, tmp_path / "map.png", layer=2)
    with pytest.raises(UserError, match="no head -1"):
        plot_attention(segments, tmp_path / "map.png", head=-1)
    assert not list(tmp_path.iterdir())
    assert plot_attention(segments, tmp_path / "map.png", title="maps").read_bytes().startswith(PNG)


# Memory ---------------------------------------------------------------------------------------------------------------


def test_memory_panels_show_similarity_norm_and_distance():
    _, memories = maps_of("RATE")
    memories = [memory.detach() for memory in memories]
    tokens, other = memory_tokens(memories, 0), memory_tokens(memories, 1)
    figure = memory_figure(tokens, other)
    truth = torch.nn.functional.cosine_similarity(
        torch.stack([memory.tokens[0] for memory in memories[1:]]), memories[1].tokens[:1], dim=-1
    ).T
    np.testing.assert_allclose(panel(figure, "similarity").images[0].get_array(), truth, atol=1e-5)
    for token in range(tokens.shape[1]):
        norms = line(panel(figure, "norm"), f"token {token + 1}").get_ydata()
        np.testing.assert_allclose(norms, [memory.tokens[0, token].norm() for memory in memories], rtol=1e-5)
    distance = line(panel(figure, "distance"), "mean over tokens").get_ydata()
    truth = [(memory.tokens[0] - memory.tokens[1]).norm(dim=-1).mean() for memory in memories]
    np.testing.assert_allclose(distance, truth, rtol=1e-5, atol=1e-6)
    assert distance[0] == 0 and distance[1] > 0


def test_without_another_episode_there_is_nothing_to_compare():
    _, memories = maps_of("RMT")
    assert {axes.get_gid() for axes in memory_figure(memory_tokens(memories)).axes} >= {"similarity", "norm"}
    assert "distance" not in {axes.get_gid() for axes in memory_figure(memory_tokens(memories)).axes}


def test_episodes_are_compared_up_to_the_shorter_one():
    _, memories = maps_of("RATE")
    tokens = memory_tokens(memories)
    assert len(line(panel(memory_figure(tokens, tokens[:3]), "distance"), "mean over tokens").get_ydata()) == 3


def test_the_principal_plane_preserves_planar_points():
    generator = np.random.default_rng(0)
    flat = generator.normal(size=(7, 4, 2)) * [3.0, 1.0] @ np.linalg.qr(generator.normal(size=(9, 2)))[0].T
    (first, second), shares = principal_plane(flat[:3], flat[3:])
    drawn = np.concatenate([first, second]).reshape(-1, 2)
    apart, truth = drawn[:, None] - drawn, flat.reshape(-1, 9)[:, None] - flat.reshape(-1, 9)
    np.testing.assert_allclose(np.linalg.norm(apart, axis=-1), np.linalg.norm(truth, axis=-1), atol=1e-9)
    assert shares[0] > shares[1] > 0 and np.isclose(shares.sum(), 1)


def test_similarity_of_tokens_that_are_zero_is_zero_not_nan():
    assert not np.isnan(similarity_to_first(np.zeros((3, 2, 4)))).any()


def test_models_and_episodes_without_memory_are_an_error(tmp_path):
    _, memories = maps_of("TrXL")
    with pytest.raises(UserError, match="no memory tokens"):
        plot_memory(memories, tmp_path / "memory.png")
    _, memories = maps_of("RATE")
    for few in ([], memories[:1]):
        with pytest.raises(UserError, match="no memory to draw"):
            plot_memory(few, tmp_path / "memory.png")
    assert not list(tmp_path.iterdir())
    one_token = [replace(memory, tokens=memory.tokens[:, :1]) for memory in memories]
    path = plot_memory(one_token, tmp_path / "memory.png", other=one_token, other_row=1, title="memory")
    assert path.read_bytes().startswith(PNG)


# Bars -----------------------------------------------------------------------------------------------------------------


def test_bars_stand_side_by_side_with_their_errors():
    groups = {"RATE": {"red": (3.0, 0.5), "green": (4.0, float("nan"))}, "DT": {"green": (1.0, 0.25)}}
    axes = bars_figure(groups, ylabel="return", colours={"red": "#ff0000"}, title="both").axes[0]
    bars = {
        container.get_label(): container for container in axes.containers if container.get_label() in ("red", "green")
    }
    assert [bar.get_height() for bar in bars["red"]] == [3] and [bar.get_height() for bar in bars["green"]] == [4, 1]
    edges = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in (*bars["red"], *bars["green"])]
    assert -0.5 < edges[0][0] < edges[0][1] <= edges[1][0] < edges[1][1] < 0.5 < edges[2][0] < edges[2][1] < 1.5
    assert bars["red"][0].get_facecolor() == (1, 0, 0, 1) != bars["green"][0].get_facecolor()
    segments = bars["green"].errorbar.lines[2][0].get_segments()
    assert [tuple(segment[:, 1]) for segment in segments] == [(4, 4), (0.75, 1.25)], "no error is known of the first"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["RATE", "DT"] and axes.get_ylabel() == "return"


def test_bars_need_a_legend_only_for_several_kinds(tmp_path):
    assert not bars_figure({"RATE": {"all": (1.0, 0.1)}}, ylabel="return").legends
    with pytest.raises(UserError, match="no values to draw"):
        plot_bars({}, tmp_path / "bars.png", ylabel="return")
    assert not list(tmp_path.iterdir())
    assert plot_bars({"RATE": {"all": (1.0, 0.1)}}, tmp_path / "bars.png", ylabel="return").read_bytes().startswith(PNG)


def test_a_single_value_has_a_marker():
    rows = [*rows_of_three_stages(), {"step": 90, "ReturnsMean_red": 47.0}]
    axes = curves_figure({"run": rows}, ["ReturnsMean_red"]).axes[0]
    assert line(axes, "run").get_marker() == "o"


def played(*returns):
    return Episodes(np.array(returns), np.ones(len(returns)), np.zeros(len(returns)))


def test_returns_of_one_target_have_a_position_per_label():
    found = {"intact": {3600.0: played(1.0, 3.0)}, "knocked out": {3600.0: played(0.5)}}
    (axes,) = returns_figure(found, title="", references={"random": -20.0, "expert": 3234.0}).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["intact", "knocked out"]
    means = [container.lines[0].get_xydata().tolist() for container in axes.containers]
    assert means == [[[0.0, 2.0]], [[1.0, 0.5]]]
    levels = {other.get_gid(): other.get_ydata()[0] for other in axes.lines if other.get_gid()}
    assert levels == {"random": -20.0, "expert": 3234.0}
    assert line(axes, "target: 3600").get_ydata()[0] == 3600


def test_returns_of_several_targets_are_lines():
    found = {"intact": {1800.0: played(1.0, 3.0), 3600.0: played(4.0, 4.0)}}
    (axes,) = returns_figure(found, title="").axes
    assert axes.get_xticks().tolist() == [1800, 3600] and axes.get_xlabel() == "target return"
    assert axes.containers[0].lines[0].get_xydata().tolist() == [[1800, 2], [3600, 4]]


def test_gates_have_a_panel_per_episode_on_one_scale():
    gates = {"write": np.array([[[0.2, 0.9]] * 3, [[0.1, 0.4]] * 3]), "size": np.array([[[-2.0]] * 3, [[1.0]] * 3])}
    figure = gates_figure(gates, {"up": 1, "down": 0})
    panels = {axes.get_gid(): axes.images[0] for axes in figure.axes if axes.get_gid()}
    assert list(panels) == ["write|up", "write|down", "size|up", "size|down"]
    assert panels["write|down"].get_array().tolist() == [[0.2] * 3, [0.9] * 3]
    assert panels["write|up"].get_clim() == (0, 1) and panels["size|up"].get_clim() == (-2, 2)
    with pytest.raises(UserError, match="has no gates"):
        gates_figure({}, {"up": 0})
