"Draw the pictures of README.md, and put the measured figures of `results/` into it."
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from dh_nb.data import photographs
from dh_nb.publishing import protect_batch
from dh_nb.results import read
from dh_nb.revealing import reveal_image
from dh_nb.scorecard import eye_lines, groups, score_lines
from dh_nb.semantic import assign, semantic_images
from dh_nb.show import Sheet, image_grid, markdown_table, png_bytes, residual
from dh_nb.training import load_hider

HERE = Path(__file__).parent
BEGIN, END = "<!-- begin: figures from results/ -->\n", "<!-- end -->"


def square(x8, side=300):
    "The middle square of a photograph."
    x = x8.float()
    scale = side / min(x.shape[1:])
    x = interpolate(x[None], scale_factor=scale, mode="bilinear", antialias=True)[0]
    top, left = ((n - side) // 2 for n in x.shape[1:])
    return x[:, top:top + side, left:left + side].round().clamp(0, 255).byte()


def before_after():
    "Three photographs: before, after, change, hidden, revealed."
    hider, names = load_hider("robust"), ["chelsea", "flower", "astronaut"]
    hidden = semantic_images(assign(names, "far").names, size=300)[:, 0]
    before = torch.stack([square(photographs()[n]) for n in names])
    after = protect_batch(hider, before, hidden)
    found = torch.stack([reveal_image(hider, x) for x in after])
    found = interpolate(found, (300, 300), mode="bilinear")
    columns = before, after, residual(before, after), hidden, found
    return image_grid(Sheet(10, 6, colours=None), list(zip(*columns)), col_labels=[
        "before", "after", "change ×5", "hidden", "revealed"])


def figures(folder=HERE.parent / "results"):
    "The table of README.md, from the rows of the protocol."
    rows, lines = read(folder), []
    rows = rows[(rows.countermeasure == "none") & rows.scale.isin(["small", "full"])]
    for (dataset, subset, victim), group in rows.groupby(["dataset", "subset", "victim"]):
        clean = group[group.method == "clean"]
        for method in ("robust", "dh") if len(clean) else ():
            safe = group[group.method == method]
            if len(safe): lines.append({
                "data": f"{dataset}, {subset}", "victim": victim,
                "preset": safe.preset.iloc[0], "seeds": len(safe),
                "trained on originals, %": clean.accuracy.mean(),
                "trained on protected, %": safe.accuracy.mean(),
                "worst PSNR, dB": safe.psnr_min.min(), "mean SSIM": safe.ssim.mean()})
    return markdown_table(lines, fmt={
        "trained on originals, %": "{:.1f}", "trained on protected, %": "{:.1f}",
        "worst PSNR, dB": "{:.2f}", "mean SSIM": "{:.3f}"})


def contest(folder=HERE.parent / "results"):
    "What a victim learns after nothing, JPEG, and the worst of the suite, and what is seen."
    chosen = ["clean", "robust, adapted", "robust", "dh", "class DCT", "EM", "LSP", "AR",
              "OPS"]
    rows = groups(read(folder))["cifar10", "small", "first 1000 a class", "quick"]
    group = rows[rows.line.isin(chosen)]
    lines = score_lines(group).merge(eye_lines(group), how="left").set_index("method")
    ends = {"mean": "{:.1f}", "worst": "{:.1f}", "worst recovery": "{:.2f}",
            "PSNR, dB": "{:.1f}", "SSIM": "{:.3f}", "Linf": "{:.0f}"}
    table = lines.loc[chosen, ["seeds", "none", "jpeg", *ends]].reset_index()
    return markdown_table(table, fmt=ends)


def fill(text):
    "README.md with today's tables."
    head, rest = text.split(BEGIN)
    tables = figures() + "\n\n" + contest()
    return head + BEGIN + "\n" + tables + "\n\n" + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    (HERE / "before_after.png").write_bytes(png_bytes(before_after()))
    readme = HERE.parent / "README.md"
    readme.write_text(fill(readme.read_text(encoding="utf-8")), encoding="utf-8")
