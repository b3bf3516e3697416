"""Runtimes of programs: they read our ONNX file (`vitswin export --format onnx`)."""

from __future__ import annotations

from vitswin_jax.benchmark.peers.work import Job, Work


def onnxruntime(job: Job) -> Work:
    """Returns the work of onnxruntime on its CPU provider."""
    import onnxruntime as library

    options = library.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.log_severity_level = 3
    session = library.InferenceSession(job["program"], options, providers=["CPUExecutionProvider"])
    images = {"images": job["images"]}
    return Work(lambda: session.run(None, images)[0], lambda logits: logits, "cpu", lambda: None)


def openvino(job: Job) -> Work:
    """Returns the work of OpenVINO on its CPU plugin, in float32."""
    import openvino as library

    config = {"INFERENCE_NUM_THREADS": job["threads"], "INFERENCE_PRECISION_HINT": "f32"}
    program = library.Core().compile_model(job["program"], "CPU", config)
    images = [job["images"]]
    return Work(lambda: program(images)[0], lambda logits: logits, "cpu", lambda: None)
