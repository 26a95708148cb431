// Decode the heads of a model, as an engine wrote them, and print the boxes as JSON Lines.
//
//     y7edge info model.onnx --c-header model.h
//     g++ -std=c++11 -O3 -ffp-contract=off -I. -I examples/cpp examples/cpp/decode.cpp -o decode
//     ./decode --image 1280x720 head0.bin head1.bin head2.bin
//
// A file has the raw values of one output for the whole batch, in the order and dtype of the
// engine, as numpy's tofile writes them. --bench N also prints the median time of N runs.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "model.h"

namespace {

struct Options {
  int width = y7edge_model.width, height = y7edge_model.height;  // of the images
  int bench = 0;
  y7edge_criteria criteria = y7edge_default_criteria(&y7edge_model);
  std::vector<std::string> files;
};

[[noreturn]] void fail(const std::string &message) {
  std::fprintf(stderr, "decode: %s\n", message.c_str());
  std::exit(1);
}

double number(const char *name, const char *text, double least, double most) {
  char *end = nullptr;
  double value = std::strtod(text, &end);
  if (end == text || *end || !(value >= least && value <= most)) {
    fail(std::string(name) + " is '" + text + "', expected a number from " +
         std::to_string(least) + " to " + std::to_string(most));
  }
  return value;
}

Options parse(int argc, char **argv) {
  Options options;
  for (int i = 1; i < argc; i++) {
    std::string name = argv[i];
    if (name.compare(0, 2, "--") != 0) {
      options.files.push_back(name);
      continue;
    }
    if (i + 1 == argc) fail(name + " needs a value");
    const char *value = argv[++i];
    if (name == "--image") {
      char rest;
      if (std::sscanf(value, "%9dx%9d%c", &options.width, &options.height, &rest) != 2 ||
          options.width < 1 || options.height < 1) {
        fail(std::string("--image is '") + value + "', expected WIDTHxHEIGHT in pixels");
      }
    } else if (name == "--conf") {
      options.criteria.conf = number("--conf", value, 0, 1);
    } else if (name == "--iou") {
      options.criteria.iou = number("--iou", value, 0, 1);
    } else if (name == "--max-det") {
      options.criteria.max_det = static_cast<int>(number("--max-det", value, 1, 100000));
    } else if (name == "--bench") {
      options.bench = static_cast<int>(number("--bench", value, 1, 1000000));
    } else {
      fail("there is no option " + name +
           ", expected --image, --conf, --iou, --max-det or --bench");
    }
  }
  if (options.files.size() != static_cast<std::size_t>(y7edge_model.levels)) {
    fail(std::to_string(options.files.size()) + " files were given, expected one for each of " +
         std::to_string(y7edge_model.levels) + " heads, finest level first");
  }
  return options;
}

std::vector<char> read(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> content((std::istreambuf_iterator<char>(file)),
                            std::istreambuf_iterator<char>());
  if (!file) fail("cannot read " + path);
  return content;
}

std::string quoted(const char *text) {  // class names have no control characters
  std::string out = "\"";
  for (; *text; text++) {
    if (*text == '"' || *text == '\\') out += '\\';
    out += *text;
  }
  return out + "\"";
}

void print(int image, const y7edge_box *boxes, int count) {
  std::printf("{\"image\": %d, \"detections\": [", image);
  for (int i = 0; i < count; i++) {
    const y7edge_box &box = boxes[i];
    std::printf(
        "%s{\"xyxy\": [%.9g, %.9g, %.9g, %.9g], \"confidence\": %.9g, \"class_id\": %d, "
        "\"class_name\": %s}",
        i ? ", " : "", box.x0, box.y0, box.x1, box.y1, box.score, box.class_id,
        quoted(y7edge_model.names[box.class_id]).c_str());
  }
  std::printf("]}\n");
}

}  // namespace

int main(int argc, char **argv) {
  Options options = parse(argc, argv);
  std::vector<std::vector<char>> contents;
  std::vector<y7edge_tensor> heads;
  std::size_t images = SIZE_MAX;
  for (int level = 0; level < y7edge_model.levels; level++) {
    contents.push_back(read(options.files[static_cast<std::size_t>(level)]));
    std::size_t bytes = y7edge_head_size(&y7edge_model, level), found = contents.back().size();
    if (!bytes || !found || found % bytes) {
      fail(options.files[static_cast<std::size_t>(level)] + " has " + std::to_string(found) +
           " bytes, expected a multiple of " + std::to_string(bytes));
    }
    images = std::min(images, found / bytes);
    heads.push_back({contents.back().data(), found});
  }
  std::vector<char> workspace(y7edge_workspace_size(&y7edge_model));
  std::vector<y7edge_box> boxes(static_cast<std::size_t>(options.criteria.max_det));
  y7edge_letterbox fit = y7edge_fit(&y7edge_model, options.width, options.height);
  std::vector<double> times;
  for (int image = 0; image < static_cast<int>(images); image++) {
    int count = 0;
    for (int round = 0; round < std::max(1, options.bench); round++) {
      auto started = std::chrono::steady_clock::now();
      count = y7edge_decode(&y7edge_model, heads.data(), image, &options.criteria,
                            workspace.data(), workspace.size(), boxes.data(),
                            options.criteria.max_det);
      if (count < 0) fail("y7edge_decode returned error " + std::to_string(count));
      count = y7edge_to_image(&fit, boxes.data(), count);
      std::chrono::duration<double, std::micro> passed =
          std::chrono::steady_clock::now() - started;
      times.push_back(passed.count());
    }
    print(image, boxes.data(), count);
  }
  if (options.bench) {
    std::nth_element(times.begin(), times.begin() + static_cast<long>(times.size() / 2),
                     times.end());
    std::fprintf(stderr, "%.1f us per image\n", times[times.size() / 2]);
  }
  return 0;
}
