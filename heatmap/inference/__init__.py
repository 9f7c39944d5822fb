"""Networks and images in, points_image out.

predict     predicts with one view or several, and averages them in image pixels
ensemble    several runs and test-time augmentation as views
predictor   a run as a function of images
submit      a submission from runs, or from other submissions
export      a run as an ONNX or torch.export file
media       images, videos and cameras in; drawn copies and tables of points out; the video filter
"""
