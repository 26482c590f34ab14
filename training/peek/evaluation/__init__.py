"""How well `peek` sees, judged by pictures and words that its training never used.

    shapes.py     figures as signed distances
    lettering.py  words from font outlines
    elsewhere.py  pictures that are none of its world
    drawing.py    scenes to pixels
    files.py      pixels to files: JPEG or PNG, blur, noise, Exif flags
    world.py      scenes whose truth is beyond dispute
    cases.py      what a case is: a conversation with one right answer
    tasks/        the tasks: scenes, question, truth; their floors
    answers.py    when an answer is right
    client.py     asks a running server through the OpenAI SDK
    report.py     accuracy with its uncertainty, conditions, other runs beside it
    tables.py     that as text; sheets.py as pictures

Run it: `python -m training.peek.evaluation --help`, or `make eval-peek`. The figures of new weights reach the docs so:

    cp runs/eval-peek/summary.json docs/peek.json && cp runs/eval-peek/accuracy.png docs/peek-accuracy.png
    python docs/generate.py

fp16 and int8 in one table: run with `--label fp16`, then with `--serve=--option --serve=weights=int8 --label int8
--compare RESULTS_OF_THE_FIRST --out ELSEWHERE`; the points are those of the later run over the earlier one.

Nothing here may be imported by the training code, nor the other way round; a test holds that line.
"""
